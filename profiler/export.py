"""Writing cost models: `models/<gpu>/<model>/….json`, their schema, and the table of their errors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from simulator.artifacts.artifact import Artifact, ErrorRow
from simulator.artifacts.models import artifact_name, artifacts
from simulator.errors import UserError


def export(artifact: Artifact, root: Path) -> Path:
    """Writes the artifact below `root` (a `models/` folder) and brings schema and table there up to date.

    Raises:
        UserError: `root` cannot be written.
    """
    name = artifact_name(artifact.weights, artifact.kv_cache_dtype, artifact.tensor_parallel_size, artifact.speculation)
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
    shipped = {
        path.relative_to(root).with_suffix("").as_posix(): Artifact.model_validate_json(path.read_text()) for path in artifacts(root)
    }
    summary = "\n".join(f"| {name} | {_minutes(artifact)} | " + " | ".join(_worst(artifact)) + " |" for name, artifact in shipped.items())
    return "\n".join([_INTRODUCTION, _HEAD + summary + "\n", *(_section(name, artifact) for name, artifact in shipped.items())])


_INTRODUCTION = """# Cost models

Generated with the artifacts; `schema.json` describes their form. Errors are predicted / measured − 1: median and 90th percentile of the
absolute error, and the mean of the signed one (of a trace: the error of the summed times). *Left out* are whole rows of the grid: the
fit that is judged saw no step with their batch (or chunk) size, or none with their context. Beside an artifact lie its measurements,
`….steps.csv.gz` and `….profile.json.gz`; `python -m profiler.fit_profile profile=<the artifact>` fits it to them again.
`….points.jsonl.gz` is what a grid that its budget cut continues from: put it as `points.jsonl.gz` into the profiler's `out=` folder.
Measurements named `…-another` and `…-realistic` belong to no artifact: a second profile of the same, and one with random weights of a real
model's scale, for `python -m profiler.distance`.
"""

_HEAD = """Errors on left-out rows, median / 90th percentile / mean, each the worse of the two ways of leaving out:

| cost model | GPU minutes | decode | prefill | mixed |
|---|--:|--:|--:|--:|
"""

_GIB = 2**30


def _minutes(artifact: Artifact) -> str:
    return f"{artifact.measurement.gpu_minutes:.1f}" if artifact.measurement else "–"


def _worst(artifact: Artifact) -> list[str]:
    """Of each kind of step, its errors on left-out rows."""
    cells = []
    for kind in ("decode", "prefill", "mixed"):
        rows = [row for row in artifact.error if row.judged_on.startswith(f"{kind} ") and row.judged_on.endswith("left out")]
        if rows:
            median, p90 = max(row.median_abs for row in rows), max(row.p90_abs for row in rows)
            cells.append(f"{median:.1%} / {p90:.1%} / {max((row.signed_mean for row in rows), key=abs):+.1%}")
        else:
            cells.append("–")
    return cells


def _section(name: str, artifact: Artifact) -> str:
    rows = "\n".join(_row(row) for row in artifact.error)
    memory, source, parts, measured = artifact.memory, artifact.provenance, artifact.memory.parts, artifact.measurement
    about = [f"{artifact.engine}, {memory.num_gpu_blocks:,} blocks of {memory.block_size} tokens."]
    about[0] += f" From {source.source} by {source.fitted_by}. {source.note}"
    if parts:
        gib = {name: getattr(parts, f"{name}_bytes") / _GIB for name in ("weights", "activation_peak", "non_torch", "graphs_estimate")}
        about.append(f"Memory of one GPU, {memory.gpu_memory_utilization:g} of {parts.total_bytes / _GIB:.1f} GiB: ")
        about[-1] += ", ".join(f"{name.replace('_', ' ')} {size:.2f} GiB" for name, size in gib.items())
        about[-1] += f"; a block {parts.bytes_per_block / 2**20:.3f} MiB."
    if measured:
        about.append(f"{measured.device}, driver {measured.driver}, {measured.power_limit_w:g} W: {measured.points} of ")
        about[-1] += f"{measured.points_in_grid} points in {measured.gpu_minutes:.1f} GPU minutes. Least / median / greatest reading: "
        about[-1] += f"{_spread(measured.sm_clock_mhz)} MHz, {_spread(measured.power_w)} W, {_spread(measured.temperature_c)} °C."
    table = f"| judged on | n | median | 90th percentile | mean |\n|---|--:|--:|--:|--:|\n{rows}\n"
    return "\n\n".join([f"## {name}", *about, table])


def _spread(values: tuple[float, float, float]) -> str:
    return " / ".join(f"{value:.0f}" for value in values)


def _row(row: ErrorRow) -> str:
    return f"| {row.judged_on} | {row.n:,} | {row.median_abs:.2%} | {row.p90_abs:.2%} | {row.signed_mean:+.2%} |"


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of text."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes aside and renames: a reader, or a run cut short, never sees half a file.

    Raises:
        UserError: the place cannot be written.
    """
    aside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("wb", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            aside = Path(file.name)
            file.write(content)
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
