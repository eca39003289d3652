"""Reading a profile: `profile.json` and `steps.csv.gz` as `python -m profiler` wrote them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from profiler.steps import as_matrix
from simulator.cost import StepFeatures
from simulator.engine import GraphMode
from simulator.errors import UserError

Float64 = NDArray[np.float64]

MODE_NUMBERS = {mode.name: int(mode) for mode in GraphMode}


@dataclass(frozen=True, eq=False)
class Profiled:
    """The measurements of one profile: a row for each kind of step of each point, medians over its repeats."""

    meta: dict[str, Any]
    """`profile.json`."""
    table: pd.DataFrame
    """Columns: `point`, `kind` (decode, prefill, mixed: by what was in the step), the fields of `StepFeatures`, `gpu_ns` (NaN where
    the GPU was never seen without gaps), `launch_ns`, `cpu_ns` (schedule and output handling), `steps` (how many)."""
    sha256: str
    """Of the two files."""

    def features(self) -> StepFeatures:
        """Columns int64[k]."""
        return StepFeatures(*(self.table[name].to_numpy(np.int64) for name in StepFeatures._fields))

    @property
    def matrix(self) -> NDArray[np.int64]:
        """int64[k, number of features]: what scikit-learn calls X."""
        return as_matrix(self.features())

    def take(self, keep: NDArray[np.bool_]) -> Profiled:
        """The rows where `keep` holds."""
        return Profiled(self.meta, self.table[keep].reset_index(drop=True), self.sha256)


def read_profile(folder: Path) -> Profiled:
    """Reads a profile's folder.

    Raises:
        UserError: a file is missing or unreadable.
    """
    digest = hashlib.sha256()
    try:
        for name in ("profile.json", "steps.csv.gz"):
            digest.update((folder / name).read_bytes())
        meta = json.loads((folder / "profile.json").read_text())
        steps = pd.read_csv(folder / "steps.csv.gz")
    except FileNotFoundError as error:
        raise UserError(
            f"profile {folder}: {Path(error.filename).name} is missing; `python -m profiler` writes it when a run ends"
        ) from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"profile {folder}: not readable ({str(error).splitlines()[0]})") from None
    if steps.empty:
        raise UserError(f"profile {folder}: has no steps")
    return Profiled(meta, _medians(steps, on_gpu=meta["gpu"] != "cpu"), digest.hexdigest())


def _medians(steps: pd.DataFrame, *, on_gpu: bool) -> pd.DataFrame:
    """One row for each point, batch composition and graph mode: a mixed point has mixed steps and decodes between them."""
    gpu_known = steps["queued"] if on_gpu else pd.Series(True, index=steps.index)
    steps = steps.assign(
        kind=np.select([steps["decode_seqs"] == 0, steps["prefill_seqs"] == 0], ["prefill", "decode"], "mixed"),
        graph_mode=steps["graph_mode"].map(MODE_NUMBERS),
        gpu_ns=(steps["gpu_s"] * 1e9).where(gpu_known),
        launch_ns=(steps["launch_s"] * 1e9).where(steps["hold_s"] == 0),
        cpu_ns=(steps["schedule_cpu_s"] + steps["update_cpu_s"]) * 1e9,
        steps=1,
    )
    same = ["point", "kind", "graph_mode", "padded_tokens", "prefill_seqs", "prefill_tokens", "decode_seqs", "verify_tokens"]
    moving = [name for name in StepFeatures._fields if name not in same]
    how = dict.fromkeys([*moving, "gpu_ns", "launch_ns", "cpu_ns"], "median") | {"steps": "sum"}
    table = steps.groupby(same, sort=False, as_index=False).agg(how)
    table[moving] = table[moving].round().astype(np.int64)
    return table
