"""What a cost model was measured for, against what a run asked of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.cluster import NS_PER_S
from simulator.metrics import Window
from simulator.simulate import Result

Float64 = NDArray[np.float64]


def outside_domain(result: Result, window: Window | None = None) -> dict[str, float]:
    """Share of the run's time (of the window's) in steps above what was measured, by feature; features within it are left out.

    Step times there are extrapolated. Judged by the features that the log of steps holds. Below what was measured lie only
    emptier batches, where a step's time is nearly constant.
    """
    low_ns, high_ns = (0, result.end_ns) if window is None else (round(edge * NS_PER_S) for edge in window)
    logs = [_lasting(log.rows, low_ns, high_ns) for log in result.logs]
    total = sum(float(lasted_ns.sum()) for _, lasted_ns in logs)
    domains = [group.cost.artifact.domain for group in result.scenario.groups]
    above: dict[str, float] = {}
    for (rows, lasted_ns), group in zip(logs, result.group.tolist(), strict=True):
        for name, (_, most) in domains[group].items():
            above[name] = above.get(name, 0.0) + float(lasted_ns @ (_steps_above(rows, name, most) / rows[:, 1]))
    return {name: lasted_ns / total for name, lasted_ns in above.items() if lasted_ns > 0}


def _lasting(rows: NDArray[np.int64], low_ns: int, high_ns: int) -> tuple[NDArray[np.int64], Float64]:
    """(rows that end in the period, float64[rows] nanoseconds since the row before)."""
    lasted_ns = np.diff(rows[:, 9], prepend=0)
    inside = (low_ns <= rows[:, 9]) & (rows[:, 9] <= high_ns)
    return rows[inside], lasted_ns[inside].astype(np.float64)


def _steps_above(rows: NDArray[np.int64], name: str, limit: float) -> NDArray[np.int64]:
    """int64[rows]: steps whose feature exceeds `limit`; within a stretch contexts grow by one token a step and sequence."""
    first_step, steps, prefill_seqs, prefill_tokens, decode_seqs, intercept_sum, intercept_max = rows.T[:7]
    verify_tokens = rows[:, 10]
    none: NDArray[np.int64] = np.zeros_like(steps)
    lines = {
        "prefill_seqs": (prefill_seqs, none),
        "prefill_tokens": (prefill_tokens, none),
        "decode_seqs": (decode_seqs, none),
        "verify_tokens": (verify_tokens, none),
        "tokens": (prefill_tokens + decode_seqs + verify_tokens, none),
        "decode_context_tokens": (intercept_sum + decode_seqs * first_step, decode_seqs),
        "decode_context_max_tokens": (intercept_max + first_step, np.ones_like(steps)),
    }
    if name not in lines:
        return none
    start, slope = lines[name]
    start = np.where((decode_seqs > 0) | (slope == 0), start, 0)
    first_above = np.maximum(np.floor((limit - start) / np.maximum(slope, 1)) + 1, 0)
    first_above = np.where(slope > 0, first_above, np.where(start > limit, 0, steps))
    above: NDArray[np.int64] = np.maximum(steps - first_above, 0).astype(np.int64)
    return above
