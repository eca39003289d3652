"""Writes docs/structure.md: every module with the first line of its docstring. Run it after adding a module: `python docs/structure.py`."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "structure.md"
HEAD = """# Every module in a line

`profiler → simulator ← validation`: the simulator knows neither of the others, and imports no torch, vLLM or scikit-learn.
Written by `python docs/structure.py`; `tests/unit/test_architecture.py` holds that law, and that this page is up to date.
"""


def summary(path: Path) -> str:
    """First line of a module's docstring; a module without one is an error."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not docstring:
        raise ValueError(f"{path}: no docstring to say what the module is")
    return docstring.splitlines()[0].replace("|", "\\|")


def table(folder: Path) -> str:
    """The modules that lie directly in `folder`."""
    rows = [f"| [`{path.name}`](../{path.relative_to(ROOT)}) | {summary(path)} |" for path in sorted(folder.glob("*.py"))]
    return "\n".join([f"\n## {folder.relative_to(ROOT)}\n", "| module | what it is |", "|---|---|", *rows, ""])


def page() -> str:
    """The whole page, as it should be."""
    folders = [
        folder
        for package in ("simulator", "profiler", "validation", "bench")
        for folder in sorted({path.parent for path in (ROOT / package).rglob("*.py")})
    ]
    return HEAD + "".join(map(table, folders))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
