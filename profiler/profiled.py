"""Reading a profile: `profile.json` and `steps.csv.gz` as `python -m profiler` wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from profiler.idle import attention_of, idle_tokens, in_step_seqs
from profiler.raw import Raw
from profiler.sampling import Sampling, sampled_tokens
from profiler.steps import as_matrix
from simulator.engine import GraphMode
from simulator.features import StepFeatures

Float64 = NDArray[np.float64]

MODE_NUMBERS = {mode.name: int(mode) for mode in GraphMode}

LONG_PROMPT_TOKENS = 1024
"""Beside longer prompts a GPU is held at lower clocks, and the decode steps that follow within milliseconds are 2 to 5 % slower."""

SAME = ("point", "kind", "graph_mode", "padded_tokens", "prefill_seqs", "prefill_tokens", "decode_seqs", "verify_tokens")
"""What the steps of one row share."""

EXPERTS = {"num_experts", "num_local_experts", "n_routed_experts"}
"""What a `config.json` calls the experts of a mixture."""

APART = ("sustained", "shared")
"""Kinds of points that are no rows of the grid: prompts for seconds, and sequences that share heads, beside others that do not."""

TOO_LONG = 1.25
"""Times the quickest of its like, from which on a step is taken to have waited for its launch: repeats lie within a tenth."""

BEHIND = 0.25
"""Share of a held step's GPU time that is left when its launch ends, from which on the GPU is taken to never have waited."""

LEAST_LONGER = 1.2
LONGEST_S = 0.06
"""Steps that tell how long a GPU waits for its first kernel: longer than their launch, and short enough that clocks stay up."""


@dataclass(frozen=True, eq=False)
class Profiled:
    """The measurements of one profile: a row for each kind of step of each point, medians over its repeats."""

    meta: dict[str, Any]
    """`profile.json`."""
    table: pd.DataFrame
    """Columns: `point`, `kind` (decode, prefill, mixed: by what was in the step), the fields of `StepFeatures`, `gpu_ns` (without
    `sample_ns`, the sampler's time; NaN where the GPU was never seen without gaps), `launch_ns`, `cpu_ns` (what the thread does
    beside launching: it chooses a batch and handles a result), `between_ns` (from the end of the step before to this one's begin; NaN with
    asynchronous scheduling), `single_gpu_ns` (list of the single steps' GPU times)."""
    sha256: str
    """Of the measurements."""
    sampling: Sampling | None
    """What follows the forward pass; None: `gpu_ns` is the whole step's, and `sample_ns` is 0."""
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
    def sample_ns(self) -> Float64:
        """float64[k]: the sampler's time, as the artifact will have it."""
        if self.sampling is None:
            return np.zeros(len(self.table))
        return self.sampling.sample_ns(np.asarray(sampled_tokens(self.table), np.int64))

    @property
    def gpu_known(self) -> Profiled:
        """The rows with a GPU time."""
        return self.take(self.table["gpu_ns"].notna().to_numpy())

    def take(self, keep: NDArray[np.bool_]) -> Profiled:
        """The rows where `keep` holds."""
        return replace(self, table=self.table[keep].reset_index(drop=True))


def from_raw(raw: Raw, after: Raw | None = None) -> Profiled:
    """The rows that a fit reads, of a profile as measured.

    Args:
        raw: the profile.
        after: the profile whose sampler and product with the vocabulary count, where `raw` did not time them apart.
    """
    meta, steps = raw.meta, raw.steps
    steps = steps[_of_grid(meta, steps["point"])]
    return _profiled(raw, meta, steps, after)


def sustained_rows(raw: Raw, after: Raw | None = None) -> Profiled | None:
    """A row for each point at which prompts followed one another, as far as the GPU never was short of work; None: there is none."""
    steps = raw.steps
    steps = steps[steps["point"].str.startswith("sustained ")]
    rows = _profiled(raw, raw.meta, steps, after).gpu_known if len(steps) else None
    return rows if rows is not None and len(rows.table) else None


def _profiled(raw: Raw, meta: dict[str, Any], steps: pd.DataFrame, after: Raw | None) -> Profiled:
    on_gpu = meta["gpu"] != "cpu"
    # A step that follows the result of the one before it finds the GPU idle: what it takes to prepare, and to draft on the CPU, counts.
    waits = not on_gpu or not meta["engine"]["async_scheduling"]
    gpu_known = steps["hold_s"] == 0 if waits else without_gaps(steps)
    sampling = Sampling.of(steps[gpu_known])
    if sampling is None and after is not None:
        sampling = Sampling.of(after.steps)
    attention = attention_of(meta)
    steps = steps.assign(decode_idle_tokens=idle_tokens(steps, attention), decode_in_step_seqs=in_step_seqs(steps, attention))
    table = _rows(_timed(steps, gpu_known, sampling))
    return Profiled(meta, table, raw.sha256, sampling, _prepare_ns(steps, table) if on_gpu else None)


def _of_grid(meta: Mapping[str, Any], points: pd.Series[str]) -> pd.Series[bool]:
    """Rows of points that tell what a step of their kind takes in service.

    A mixture of experts whose weights are dummies sends tokens that attend to the same claimed context to the same experts: a chunk that
    begins there reads a fraction of the weights, as no real prompt's does. So of such models only whole prompts count.
    """
    kept = ~points.str.partition(" ")[0].isin(APART)
    if EXPERTS & set(meta.get("config") or {}) and meta.get("moe_routing") is None:
        kept &= ~points.str.contains(r"@[1-9]", regex=True)
    return kept


def without_gaps(steps: pd.DataFrame) -> pd.Series[bool]:
    """Whether the GPU always had work: its own time is what its events say only then.

    Sure if it had not begun when the step was launched. But a step of more kernels than a stream queues (about 1,000) can be launched
    to its end only while it runs: then if the GPU came to the end long after the launch did.
    """
    if "behind_s" not in steps:
        return steps["queued"]
    known = steps["queued"] | ((steps["hold_s"] > 0) & (steps["behind_s"] > BEHIND * steps["gpu_s"]))
    # Now and then a launch is held up for longer than its hold; with few kernels left, the GPU ends long after it, too. And of several
    # GPUs, one may wait for what another is late to launch. Points that differ in their kind only (sampling, decode) are the same batch.
    batch = steps["point"].str.partition(" ")[2]
    like = [batch, *(steps[name] for name in SAME if name in steps and name != "point")]
    return known & (steps["gpu_s"] < TOO_LONG * steps["gpu_s"].where(known).groupby(like).transform("min"))


def _timed(steps: pd.DataFrame, gpu_known: pd.Series[bool], sampling: Sampling | None) -> pd.DataFrame:
    """The steps with times in nanoseconds, those with dummy weights' logits left out."""
    if sampling is None:
        gpu_s, sample_s = steps["gpu_s"], pd.Series(0.0, index=steps.index)
    else:
        positions = np.asarray(sampled_tokens(steps), np.int64)
        # Steps that were measured before the two were timed apart: their forward pass, and what follows it as measured elsewhere.
        sample_s = steps.get("sample_s", pd.Series(np.nan, index=steps.index))
        gpu_s = (steps["gpu_s"] - sample_s).fillna(steps["forward_s"] + sampling.logits_ns(positions) / 1e9)
        sample_s = sample_s.fillna(pd.Series(sampling.sample_ns(positions) / 1e9, index=steps.index))
    steps = steps.assign(
        kind=np.select([steps["decode_seqs"] == 0, steps["prefill_seqs"] == 0], ["prefill", "decode"], "mixed"),
        graph_mode=steps["graph_mode"].map(MODE_NUMBERS),
        gpu_ns=(gpu_s * 1e9).where(gpu_known),
        # A sampler's kernels wait for their launch where the forward pass was shorter than its own: no time of theirs, either.
        sample_ns=(sample_s * 1e9).where(gpu_known),
        launch_ns=(steps["launch_s"] * 1e9).where(steps["hold_s"] == 0),
        cpu_ns=(steps["schedule_cpu_s"] + steps["update_cpu_s"]) * 1e9,
        between_ns=steps.get("between_s", pd.Series(np.nan, index=steps.index)) * 1e9,
        prefill_attention_tokens=_pairs(steps),
    )
    return steps[steps["peaked"] != False] if "peaked" in steps else steps  # noqa: E712  # older steps have no value there


def _rows(steps: pd.DataFrame) -> pd.DataFrame:
    """One row for each point, batch composition and graph mode: a mixed point has mixed steps and decodes between them."""
    longest_prompt = steps.groupby("point")["prefill_tokens"].transform("max")
    steps = steps[(steps["prefill_seqs"] > 0) | (longest_prompt <= LONG_PROMPT_TOKENS)]
    moving = [name for name in StepFeatures._fields if name not in SAME]
    grouped = steps.groupby(list(SAME), sort=False)
    table = grouped[[*moving, "gpu_ns", "sample_ns", "launch_ns", "cpu_ns", "between_ns"]].median()
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
    rows = table[table["kind"] == "prefill"].set_index(["point", "padded_tokens"])
    held = rows["gpu_ns"] + rows["sample_ns"]
    held = held[~held.index.duplicated()]
    pairs = alone.join(held.rename("held_ns"), on=["point", "padded_tokens"])
    bound_by_gpu = (pairs["held_ns"] > LEAST_LONGER * pairs["launch_s"] * 1e9) & (pairs["held_ns"] < LONGEST_S * 1e9)
    waits_ns = pairs["gpu_s"] * 1e9 - pairs["held_ns"]
    return max(float(waits_ns[bound_by_gpu].median()), 0.0) if bound_by_gpu.any() else None
