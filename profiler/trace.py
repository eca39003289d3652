"""Reading a measured trace: a folder with `meta.json`, `requests.csv.gz` and `steps.csv.gz` (format version 1)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field, ValidationError

from simulator.engine import EngineConfig
from simulator.errors import UserError

FILES = ("meta.json", "requests.csv.gz", "steps.csv.gz")
REQUEST_COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens", "ttft_s")
STEP_COLUMNS = (
    *("schedule_s", "update_s"),
    *("prefill_seqs", "prefill_tokens", "prefill_context_tokens"),
    *("decode_seqs", "decode_context_tokens"),
    "preempted",
)


class TraceEngine(BaseModel):
    """The engine that was recorded, under vLLM's own option names."""

    name: str
    version: str
    max_model_len: int = Field(ge=2)
    max_num_batched_tokens: int = Field(ge=1)
    max_num_seqs: int = Field(ge=1)
    block_size: int = Field(ge=1)
    num_gpu_blocks: int = Field(ge=2)
    async_scheduling: bool
    enable_chunked_prefill: bool
    enforce_eager: bool = False
    gpu_memory_utilization: float = Field(0.92, gt=0, le=1)


class TraceMeta(BaseModel):
    """`meta.json`: what was recorded. Keys that a fit does not need are ignored."""

    format_version: Literal[1]
    name: str
    gpu: str
    model: str
    weights: str
    kv_cache_dtype: str
    tensor_parallel_size: int = Field(ge=1)
    prefix_caching: bool
    speculative: dict[str, Any] | None
    overheads: dict[str, float] | None = None
    """Medians of the ways between client and engine, seconds, as this project's recorder saw them."""
    host: dict[str, float] | None = None
    """How fast the host was at launching (`profiler/host.py`)."""
    engine: TraceEngine

    def engine_config(self) -> EngineConfig:
        """The engine's options as the simulator takes them."""
        given = self.engine.model_dump(exclude={"name", "version", "gpu_memory_utilization"})
        return EngineConfig(**given, enable_prefix_caching=self.prefix_caching)


@dataclass(frozen=True, eq=False)
class Trace:
    """A measured trace with its steps; `requests` has one row a request in the order of arrival, `steps` one a step."""

    meta: TraceMeta
    requests: pd.DataFrame
    steps: pd.DataFrame
    sha256: str
    """Hash over the names and the bytes of the three files."""


def read_trace(folder: Path) -> Trace:
    """Reads a measured trace that has step records.

    Raises:
        UserError: a file is missing or unreadable, a column is missing, or a value makes no sense.
    """
    if not folder.is_dir():
        raise UserError(f"trace {folder}: no such folder; give a folder with {', '.join(FILES)}")
    for name in FILES:
        if not (folder / name).is_file():
            raise UserError(f"trace {folder}: {name} is missing; a fit needs {', '.join(FILES)}")
    requests = _read_table(folder / "requests.csv.gz", REQUEST_COLUMNS)
    steps = _read_table(folder / "steps.csv.gz", STEP_COLUMNS)
    if (np.diff(steps["update_s"]) < 0).any():
        raise UserError(f"trace {folder / 'steps.csv.gz'}: update_s goes back in row {int((np.diff(steps['update_s']) < 0).argmax()) + 1}")
    digest = hashlib.sha256()
    for name in FILES:
        digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    in_order = requests.sort_values("arrival_s", kind="stable", ignore_index=True)
    return Trace(_read_meta(folder / "meta.json"), in_order, steps, digest.hexdigest())


def _read_meta(path: Path) -> TraceMeta:
    try:
        return TraceMeta.model_validate(json.loads(path.read_text()))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"trace {path}: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"trace {path}: not readable as JSON ({error})") from None


def _read_table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"trace {path}: not readable as compressed CSV ({str(error).splitlines()[0]})") from None
    missing = [name for name in columns if name not in table]
    if missing:
        raise UserError(f"trace {path}: column {', '.join(missing)} is missing")
    if table.empty:
        raise UserError(f"trace {path}: has no rows")
    for name in columns:
        values = pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64)
        whole = not name.endswith("_s")
        wrong = ~np.isfinite(values) | (values < 0) | (whole & (values != np.floor(values)))
        if wrong.any():
            row = int(wrong.argmax())
            raise UserError(f"trace {path}: {name} is {table[name].iloc[row]} in row {row}, not a {'whole ' * whole}number of 0 or more")
        table[name] = values.astype(np.int64) if whole else values
    return table
