"""Holds a replay against what was measured: signed relative errors, simulated / measured − 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.step.itl import inter_token_latency
from simulator.workload.base import NS_PER_S
from validation.intervals import STATISTICS, Interval, intervals
from validation.measured import at_times, measured_requests, measured_steps
from validation.replay import Replay, duration, quantiles, tpot

Float64 = NDArray[np.float64]
Columns = dict[str, Float64]

LABELS = {
    "e2e_s": "E2E",
    "tpot_s": "TPOT",
    "ttft_s": "TTFT",
    "itl_p50_s": "ITL, median of a request",
    "itl_p99_s": "ITL, p99 of a request",
    "itl_max_s": "ITL, longest of a request",
    "kv_usage": "KV usage over time",
}
"""Rows of the table in their order."""
PER_REQUEST = ("e2e_s", "tpot_s", "ttft_s")


@dataclass(frozen=True)
class Row:
    """One quantity: its statistics as measured, and their errors. None: not measured, or 0 was."""

    measured: dict[str, float]
    errors: dict[str, float | None]
    intervals: dict[str, Interval | None]


@dataclass(frozen=True)
class Preempted:
    """How often requests were preempted, and which."""

    simulated: int
    measured: int | None
    """None: the trace has no steps."""
    both: int | None
    """Requests preempted in both; None: the trace does not say which were. So the other two."""
    only_measured: int | None
    only_simulated: int | None


@dataclass(frozen=True)
class PrefixCache:
    """Prompt tokens that were found in the prefix cache when their request was first scheduled, of the requests that are compared."""

    prompt_tokens: int
    simulated_hits: int
    measured_hits: int
    requests: int
    same_requests: int
    """Those of which as many tokens were found in both."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """All errors of one trace."""

    replay: Replay
    measured: Columns
    """float64[n] by name, in the order of arrival; so `simulated`. NaN of latencies: the request had not ended when the trace was cut."""
    simulated: Columns
    steps: pd.DataFrame | None
    rows: dict[str, Row]
    """By the keys of `LABELS`, as far as they were measured."""
    totals: dict[str, tuple[float, float]]
    """(simulated, measured) of `duration_s` (unless the trace was cut), `output_tokens_per_s`, `itl_p99_s` and `itl_max_s` of all tokens
    where there are steps, and, unless it was set by hand, `num_gpu_blocks`."""
    mean_abs: dict[str, float]
    """Mean over requests of |simulated / measured − 1|, by `PER_REQUEST`."""
    kv_usage_mean_abs: float | None
    """Mean over time of |simulated − measured| share of the pool."""
    preemptions: Preempted
    prefix_cache: PrefixCache | None
    """None: the engine had none, or the trace does not tell its hits."""

    @property
    def unfinished(self) -> int:
        """Requests that had not ended when the trace was cut: simulated, not compared."""
        return int(np.isnan(self.measured["e2e_s"]).sum())

    @property
    def average_abs(self) -> float:
        """Mean of |error| over mean, p50, p90 and p99 of E2E and TPOT: one figure for a trace."""
        errors = [error for name in ("e2e_s", "tpot_s") if name in self.rows for error in self.rows[name].errors.values()]
        return float(np.mean([abs(error) for error in errors if error is not None]))


def compare(replay: Replay) -> Comparison:
    """Reads the measured latencies and compares.

    Raises:
        UserError: the trace has none.
    """
    recording, result = replay.recording, replay.result
    measured = measured_requests(recording.folder, result.requests.request_id, recording.meta.cut_s is not None)
    simulated = {name: np.asarray(column, np.float64) for name, column in replay.columns().items() if name in (*LABELS, "preemptions")}
    ended = np.isfinite(measured["e2e_s"])
    simulated = {name: np.where(ended, column, np.nan) if name in LABELS else column for name, column in simulated.items()}
    output_tokens, arrival_s = result.requests.output_tokens, result.requests.arrival_ns / NS_PER_S
    for columns in (measured, simulated):
        columns["tpot_s"] = tpot(columns["ttft_s"], columns["e2e_s"], output_tokens)
    steps = measured_steps(recording.folder)
    rows = {
        name: row for name in LABELS if name in measured and (row := _row(simulated[name], measured[name], arrival_s, measured["e2e_s"]))
    }
    usage = _kv_usage(replay, steps) if steps is not None and len(result.timeline.time_ns) else None
    if usage is not None and (row := _row(usage[1], usage[0], None, None)):
        rows["kv_usage"] = row
    return Comparison(
        replay=replay,
        measured=measured,
        simulated=simulated,
        steps=steps,
        rows=rows,
        totals=_totals(replay, measured, simulated, steps),
        mean_abs={name: float(np.nanmean(np.abs(simulated[name] / measured[name] - 1))) for name in PER_REQUEST},
        kv_usage_mean_abs=None if usage is None or not len(usage[0]) else float(np.abs(usage[1] - usage[0]).mean()),
        preemptions=preempted(simulated["preemptions"], measured.get("preemptions"), steps),
        prefix_cache=_prefix_cache(replay, measured) if recording.meta.prefix_caching and "cached_tokens" in measured else None,
    )


def _totals(replay: Replay, measured: Columns, simulated: Columns, steps: pd.DataFrame | None) -> dict[str, tuple[float, float]]:
    result, meta = replay.result, replay.recording.meta
    measured_s = meta.cut_s or duration(result.requests.arrival_ns / NS_PER_S, measured["e2e_s"])
    totals = {} if meta.cut_s else {"duration_s": (replay.duration_s, measured_s)}
    tokens = measured.get("received_tokens", None if meta.cut_s else result.requests.output_tokens)
    if tokens is not None:
        emitted = replay.until_cut.emitted_tokens
        totals["output_tokens_per_s"] = (float(emitted.sum()) / replay.duration_s, float(tokens.sum()) / measured_s)
    if steps is not None:
        gaps = inter_token_latency(replay.until_cut, (99.0,), of_tokens=True)
        in_chunks = None if meta.speculative is None or tokens is None else int(tokens.sum()) - len(tokens)
        totals["itl_p99_s"] = (gaps.percentiles_s[99.0], _token_gaps_p99_s(steps, in_chunks))
    if "itl_max_s" in measured:
        totals["itl_max_s"] = (float(np.nanmax(simulated["itl_max_s"])), float(np.nanmax(measured["itl_max_s"])))
    if meta.num_gpu_blocks_override is None:
        totals["num_gpu_blocks"] = (result.scenario.engine.num_gpu_blocks, meta.engine.num_gpu_blocks)
    return totals


def _token_gaps_p99_s(steps: pd.DataFrame, gaps: int | None = None) -> float:
    """Over all tokens: each step's gap counts once for every sequence that decodes in it.

    `gaps`: between all tokens, where several come in a chunk: those that no step has are 0. None: a chunk is a token.
    """
    gap_s = steps.groupby("replica")["update_s"].diff().to_numpy(np.float64)
    weight = steps["decode_seqs"].to_numpy(np.float64)
    known = np.isfinite(gap_s) & (weight > 0)
    gap_s, weight = gap_s[known], weight[known]
    if gaps is not None:
        gap_s, weight = np.append(gap_s, 0.0), np.append(weight, max(gaps - weight.sum(), 0.0))
    order = np.argsort(gap_s)
    upto = np.cumsum(weight[order])
    return float(gap_s[order][np.searchsorted(upto, 0.99 * upto[-1])])


def preempted(simulated: Float64, measured: Float64 | None, steps: pd.DataFrame | None) -> Preempted:
    """Counts, and of the requests those preempted in both; `simulated` and `measured` are preemptions float64[n]."""
    by_steps = None if steps is None else int(steps["preempted"].sum())
    if measured is None:
        return Preempted(int(simulated.sum()), by_steps, None, None, None)
    there, here = measured > 0, simulated > 0
    return Preempted(
        int(simulated.sum()), int(measured.sum()), int((there & here).sum()), int((there & ~here).sum()), int((here & ~there).sum())
    )


def _prefix_cache(replay: Replay, measured: Columns) -> PrefixCache:
    ended = np.isfinite(measured["e2e_s"])
    prompt, here, there = replay.result.requests.prompt_tokens[ended], replay.result.cached_tokens[ended], measured["cached_tokens"][ended]
    return PrefixCache(int(prompt.sum()), int(here.sum()), int(there.sum()), len(here), int((here == there).sum()))


def _kv_usage(replay: Replay, steps: pd.DataFrame) -> tuple[Float64, Float64]:
    """(measured, simulated) share of the pool in use, at the simulation's samples that lie within both; means over replicas."""
    timeline, engine = replay.result.timeline, replay.result.scenario.engine
    time_s = timeline.time_ns / NS_PER_S
    within = (time_s >= steps["schedule_s"].min()) & (time_s <= steps["schedule_s"].max())
    return at_times(steps, "kv_usage", time_s[within]).mean(axis=1), timeline.kv_blocks[within].mean(axis=1) / engine.usable_blocks


def _row(simulated: Float64, measured: Float64, arrival_s: Float64 | None, e2e_s: Float64 | None) -> Row | None:
    """None where nothing was measured. Without arrivals the values are no requests, and get no interval."""
    both = np.isfinite(simulated) & np.isfinite(measured)
    of_measured, of_simulated = quantiles(measured[both]), quantiles(simulated[both])
    if of_measured is None or of_simulated is None:
        return None
    errors = {name: relative(of_simulated[name], of_measured[name]) for name in STATISTICS}
    if arrival_s is None or e2e_s is None:
        return Row(of_measured, errors, dict.fromkeys(STATISTICS))
    return Row(of_measured, errors, intervals(simulated[both], measured[both], arrival_s[both], e2e_s[both]))


def relative(simulated: float, measured: float) -> float | None:
    """Signed relative error; none where both are 0, and None where 0 was measured alone."""
    if measured:
        return simulated / measured - 1
    return None if simulated else 0.0
