"""Writing cost models: `models/<gpu>/<model>/….json`, their schema, and the table of their errors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from simulator.cost import Artifact, ErrorRow
from simulator.errors import UserError
from simulator.models import artifact_name, artifacts


def export(artifact: Artifact, root: Path) -> Path:
    """Writes the artifact below `root` (a `models/` folder) and brings schema and table there up to date.

    Raises:
        UserError: `root` cannot be written.
    """
    name = artifact_name(artifact.weights, artifact.kv_cache_dtype, artifact.tensor_parallel_size)
    path = root / artifact.gpu / artifact.model / name
    write_text(path, artifact_json(artifact))
    write_text(root / "schema.json", schema_json())
    write_text(root / "README.md", error_table(root))
    return path


def artifact_json(artifact: Artifact) -> str:
    """The artifact's file: the same artifact gives the same bytes."""
    return _json(artifact.model_dump(mode="json"))


def schema_json() -> str:
    """JSON schema of the artifact: `models/schema.json`."""
    return _json({"$schema": "https://json-schema.org/draft/2020-12/schema", **Artifact.model_json_schema()})


def error_table(root: Path) -> str:
    """`models/README.md`: what was measured, and how well each cost model predicts it."""
    parts = [_INTRODUCTION]
    for path in artifacts(root):
        artifact = Artifact.model_validate_json(path.read_text())
        rows = "\n".join(_row(row) for row in artifact.error)
        parts.append(
            f"## {path.relative_to(root).with_suffix('').as_posix()}\n\n"
            f"{artifact.engine}, {artifact.memory.num_gpu_blocks:,} blocks of {artifact.memory.block_size} tokens. "
            f"From {artifact.provenance.source} by {artifact.provenance.fitted_by}. {artifact.provenance.note}\n\n"
            f"| judged on | n | median | 90th percentile | sum |\n|---|--:|--:|--:|--:|\n{rows}\n"
        )
    return "\n".join(parts)


_INTRODUCTION = """# Cost models

Generated with the artifacts; `schema.json` describes their form. Errors are predicted / measured − 1: median and 90th percentile
of the absolute error, and the signed error of the summed times.
"""


def _row(row: ErrorRow) -> str:
    return f"| {row.judged_on} | {row.n:,} | {row.median_abs:.2%} | {row.p90_abs:.2%} | {row.signed_mean:+.2%} |"


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Writes aside and renames: a reader, or a run cut short, never sees half a file.

    Raises:
        UserError: the place cannot be written.
    """
    aside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            aside = Path(file.name)
            file.write(text)
        aside.chmod(0o666 & ~_umask())
        aside.replace(path)
    except OSError as error:
        if aside is not None:
            aside.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
