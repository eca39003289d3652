"""Reading a profile: `profile.json` and `steps.csv.gz` as `python -m profiler` wrote them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from profiler.raw import Raw
from profiler.steps import as_matrix
from simulator.engine import GraphMode
from simulator.features import StepFeatures

Float64 = NDArray[np.float64]

MODE_NUMBERS = {mode.name: int(mode) for mode in GraphMode}

LONG_PROMPT_TOKENS = 1024
"""Beside longer prompts a GPU is held at lower clocks, and the decode steps that follow within milliseconds are 2 to 5 % slower."""

SAME = ("point", "kind", "graph_mode", "padded_tokens", "prefill_seqs", "prefill_tokens", "decode_seqs", "verify_tokens")
"""What the steps of one row share."""

LEAST_LONGER = 1.2
LONGEST_S = 0.06
"""Steps that tell how long a GPU waits for its first kernel: longer than their launch, and short enough that clocks stay up."""


@dataclass(frozen=True, eq=False)
class Profiled:
    """The measurements of one profile: a row for each kind of step of each point, medians over its repeats."""

    meta: dict[str, Any]
    """`profile.json`."""
    table: pd.DataFrame
    """Columns: `point`, `kind` (decode, prefill, mixed: by what was in the step), the fields of `StepFeatures`, `gpu_ns` (NaN where
    the GPU was never seen without gaps), `launch_ns`, `cpu_ns` (what the thread does beside launching), `single_gpu_ns` (list of the
    single steps' GPU times)."""
    sha256: str
    """Of the measurements."""
    prepare_ns: float | None
    """From the begin of a launch to the first kernel, where the GPU waited for it; None: never seen."""

    def features(self) -> StepFeatures:
        """Columns int64[k]."""
        return StepFeatures(*(self.table[name].to_numpy(np.int64) for name in StepFeatures._fields))

    @property
    def matrix(self) -> NDArray[np.int64]:
        """int64[k, number of features]: what scikit-learn calls X."""
        return as_matrix(self.features())

    @property
    def gpu_known(self) -> Profiled:
        """The rows with a GPU time."""
        return self.take(self.table["gpu_ns"].notna().to_numpy())

    def take(self, keep: NDArray[np.bool_]) -> Profiled:
        """The rows where `keep` holds."""
        return replace(self, table=self.table[keep].reset_index(drop=True))


def from_raw(raw: Raw) -> Profiled:
    """The rows that a fit reads, of a profile as measured."""
    meta, steps = raw.meta, raw.steps
    on_gpu = meta["gpu"] != "cpu"
    table = _rows(steps, on_gpu=on_gpu)
    return Profiled(meta, table, raw.sha256, _prepare_ns(steps, table) if on_gpu else None)


def _rows(steps: pd.DataFrame, *, on_gpu: bool) -> pd.DataFrame:
    """One row for each point, batch composition and graph mode: a mixed point has mixed steps and decodes between them."""
    gpu_known = steps["queued"] if on_gpu else pd.Series(True, index=steps.index)
    longest_prompt = steps.groupby("point")["prefill_tokens"].transform("max")
    steps = steps.assign(
        kind=np.select([steps["decode_seqs"] == 0, steps["prefill_seqs"] == 0], ["prefill", "decode"], "mixed"),
        graph_mode=steps["graph_mode"].map(MODE_NUMBERS),
        gpu_ns=(steps["gpu_s"] * 1e9).where(gpu_known),
        launch_ns=(steps["launch_s"] * 1e9).where(steps["hold_s"] == 0),
        cpu_ns=(steps["schedule_cpu_s"] + steps["update_cpu_s"]) * 1e9,
        prefill_attention_tokens=_pairs(steps),
    )
    steps = steps[(steps["prefill_seqs"] > 0) | (longest_prompt <= LONG_PROMPT_TOKENS)]
    moving = [name for name in StepFeatures._fields if name not in SAME]
    grouped = steps.groupby(list(SAME), sort=False)
    table = grouped[[*moving, "gpu_ns", "launch_ns", "cpu_ns"]].median()
    table["single_gpu_ns"] = grouped["gpu_ns"].agg(lambda times: times.dropna().tolist())
    table = table.reset_index()
    table[moving] = table[moving].round().astype(np.int64)
    return table


def _pairs(steps: pd.DataFrame) -> pd.Series[int]:
    """Pairs that attention computes. Recorded is Σ chunk × end; the chunks of one step are equal, so Σ chunk² is known."""
    tokens, chunks = steps["prefill_tokens"], steps["prefill_seqs"].clip(lower=1)
    above_diagonal = (tokens * tokens / chunks - tokens) / 2
    return (steps["prefill_attention_tokens"] - above_diagonal).round().astype(np.int64)


def _prepare_ns(steps: pd.DataFrame, table: pd.DataFrame) -> float | None:
    """Prompts on an idle GPU: what they took longer than behind a hold."""
    alone = steps[(steps["decode_seqs"] == 0) & (steps["hold_s"] == 0) & ~steps["queued"]]
    held = table[table["kind"] == "prefill"].set_index(["point", "padded_tokens"])["gpu_ns"]
    held = held[~held.index.duplicated()]
    pairs = alone.join(held.rename("held_ns"), on=["point", "padded_tokens"])
    bound_by_gpu = (pairs["held_ns"] > LEAST_LONGER * pairs["launch_s"] * 1e9) & (pairs["held_ns"] < LONGEST_S * 1e9)
    waits_ns = pairs["gpu_s"] * 1e9 - pairs["held_ns"]
    return max(float(waits_ns[bound_by_gpu].median()), 0.0) if bound_by_gpu.any() else None
