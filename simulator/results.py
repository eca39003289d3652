"""Results on disk: a folder a run, named by what the run depends on, complete or absent."""

from __future__ import annotations

import json
import math
import platform
import shutil
import tempfile
from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.cluster import NS_PER_S
from simulator.config import Config
from simulator.errors import UserError
from simulator.metrics import request_columns
from simulator.simulate import Result
from simulator.step.steplog import ROW

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT_VERSION = 1
PACKAGES = ("howmanygpus", "numpy", "pyarrow", "pydantic", "scipy", "simpy")
"""What the numbers, or the bytes of the files, could depend on."""


def manifest(config: Config, description: str, *, cost_model: bool = True) -> dict[str, Any]:
    """What the results depend on, and nothing else: no time, no machine.

    Args:
        config: the run's; where its results go is left out.
        description: of the workload, one line.
        cost_model: whether they depend on a cost model.
    """
    return {
        "format_version": FORMAT_VERSION,
        "config": config.model_dump(mode="json", exclude={"out"}),
        "workload": description,
        "cost_model": _cost_model(config.cost_model_path) if cost_model else None,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def _cost_model(path: Path) -> dict[str, Any]:
    artifact = json.loads(path.read_text(encoding="utf-8"))
    return {
        "sha256": sha256(path.read_bytes()).hexdigest(),
        **{key: artifact[key] for key in ("gpu", "model", "weights", "kv_cache_dtype", "tensor_parallel_size", "provenance")},
    }


def folder(config: Config, contents: Mapping[str, Any]) -> Path:
    """`<out>/<name>-<hash8>`, the hash that of the manifest `contents`."""
    digest = sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
    return Path(config.out) / f"{config.name}-{digest[:8]}"


def write_run(config: Config, result: Result, summary: Mapping[str, Any]) -> Path:
    """Writes manifest.json, summary.json, requests.parquet, steps.parquet and timeline.parquet; returns their folder.

    A row of steps.parquet is a step or a stretch of steady decode, a row of timeline.parquet a replica at an instant.

    Raises:
        UserError: the folder cannot be written.
    """
    contents = manifest(config, result.scenario.workload.description)
    texts = {"manifest.json": to_json(contents), "summary.json": to_json(summary)}
    tables = {"requests.parquet": request_columns(result), "steps.parquet": _steps(result), "timeline.parquet": _timeline(result)}
    return write_folder(folder(config, contents), texts, tables)


def write_folder(target: Path, texts: Mapping[str, str], tables: Mapping[str, Mapping[str, NDArray[Any]]]) -> Path:
    """Writes text files and Parquet tables (columns by name) aside, and renames the folder last: it is complete or absent.

    A folder of that name is replaced. Returns `target`.

    Raises:
        UserError: the folder cannot be written.
    """
    aside: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        aside.chmod(0o755)
        for name, text in texts.items():
            (aside / name).write_text(text, encoding="utf-8")
        for name, columns in tables.items():
            _write_parquet(aside / name, columns)
        if target.is_dir():
            shutil.rmtree(target)
        aside.rename(target)
    except OSError as error:
        raise UserError(f"out: cannot write {target}: {error.strerror or error}") from None
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
    return target


def to_json(values: Any) -> str:
    """JSON text; what is not a finite number (nothing to measure, or beyond what the run saw) becomes null."""
    return json.dumps(_plain(values), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_parquet(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()})
    pq.write_table(table, path, compression="zstd")


def _steps(result: Result) -> dict[str, NDArray[Any]]:
    rows = np.concatenate([log.rows for log in result.logs])
    replica = np.repeat(np.arange(len(result.logs)), [len(log.rows) for log in result.logs])
    return {"replica": replica, **{name: rows[:, column] for column, name in enumerate(ROW)}}


def _timeline(result: Result) -> dict[str, NDArray[Any]]:
    timeline, replicas = result.timeline, len(result.logs)
    samples = {name: getattr(timeline, name).ravel() for name in ("kv_blocks", "running", "waiting", "batch_tokens")}
    time_s = np.repeat(timeline.time_ns, replicas) / NS_PER_S
    return {"time_s": time_s, "replica": np.tile(np.arange(replicas), len(timeline.time_ns)), **samples}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
