"""The notebooks, run from their first cell to their last."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the environment of vLLM's tests has no notebooks")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_BYTES = 150_000
"""A notebook is stored with small pictures, for those who read it without running it."""

RUN = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=280).execute()
"""


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path) -> None:
    # Figures as data: drawing them needs a browser.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PLOTLY_RENDERER": "json", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    done = subprocess.run([sys.executable, "-c", RUN, path], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_answers_a_question_and_has_no_logic_of_its_own(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    assert path.stat().st_size < MOST_BYTES
    title, answer = notebook.cells[0].source.split("\n", 1)
    assert title.startswith("# ")
    assert title.endswith("?")
    assert answer.strip()
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert all(word not in code for word in ("def ", "class ", "lambda", "while ", "numpy", "pandas"))
    assert not any(output.output_type == "error" for cell in notebook.cells for output in cell.get("outputs", []))
