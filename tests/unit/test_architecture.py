"""The dependency law (profiler → simulator ← validation), and that files stay readable."""

from __future__ import annotations

import ast
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "simulator": {"sklearn", "torch", "transformers", "vllm", "profiler", "validation"},
    "profiler": {"validation"},
    "validation": {"profiler"},
}
MODULES = sorted(path.relative_to(ROOT) for package in FORBIDDEN for path in (ROOT / package).rglob("*.py"))
MAX_LINES = 400

IMPORT_ALL = """
import importlib, json, pkgutil, sys
import simulator
for module in pkgutil.walk_packages(simulator.__path__, "simulator."):
    importlib.import_module(module.name)
print(json.dumps(sorted(sys.modules)))
"""


def imported_packages(source: str) -> set[str]:
    """Top-level packages that a module imports, at its head or inside a function."""
    packages = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            packages.add(node.module.partition(".")[0])
    return packages


def test_the_scan_sees_every_form_of_import() -> None:
    source = "import torch.nn as nn, json\ndef f():\n    from vllm.v1 import core\n    from . import torch_free\n"
    assert imported_packages(source) == {"torch", "json", "vllm"}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_follow_the_dependency_law(path: Path) -> None:
    assert not imported_packages((ROOT / path).read_text(encoding="utf-8")) & FORBIDDEN[path.parts[0]]


def test_importing_the_whole_simulator_loads_nothing_heavy() -> None:
    """By what is loaded in the end, so that a detour through another library counts too."""
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert {"simulator.cost", "simulator.__main__"} <= loaded
    assert not loaded & FORBIDDEN["simulator"]


def test_files_are_short() -> None:
    files = [*MODULES, *(path.relative_to(ROOT) for folder in ("tests", "bench") for path in (ROOT / folder).rglob("*.py"))]
    lines = {str(path): len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in files}
    assert {path: n for path, n in lines.items() if n > MAX_LINES} == {}


def test_the_page_of_modules_is_up_to_date() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "structure.py"))
    assert script["PAGE"].read_text(encoding="utf-8") == script["page"](), "run: python docs/structure.py"
