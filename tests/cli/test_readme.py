"""The README's first screen: what it shows is what its commands print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```(?:console|text)\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
ANSWER = next(block for block in BLOCKS if block.startswith("You need"))
ERRORS = next(block for block in BLOCKS if "python -m validation\n" in block)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        pytest.param(["simulator", "conf/capacity_planning.yaml"], ANSWER, id="answer"),
        pytest.param(["validation"], ERRORS.partition("\n")[2], id="errors"),
    ],
)
@pytest.mark.slow
def test_a_command_prints_what_the_readme_shows(command: list[str], shown: str, tmp_path: Path) -> None:
    """Where the README leaves lines or columns out, it has `...` or ends a line early."""
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = iter(done.stdout.splitlines())
    for line in shown.splitlines():
        if line != "...":
            assert any(of_command.startswith(line) for of_command in printed), f"not printed, or not in this order: {line}"
