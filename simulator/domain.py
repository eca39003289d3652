"""What a cost model was measured for, against what a run asked of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.simulate import Result

Float64 = NDArray[np.float64]


def outside_domain(result: Result) -> dict[str, float]:
    """Share of the run's steps that lie above what was measured, by feature; features within it are left out.

    Step times there are extrapolated. Judged by the features that the log of steps holds.
    """
    domain = result.scenario.cost.artifact.domain
    steps = sum(log.num_steps for log in result.logs)
    shares = {}
    for name in domain:
        above = sum(_steps_above(log.rows, name, domain[name][1]) for log in result.logs)
        if above:
            shares[name] = above / steps
    return shares


def _steps_above(rows: NDArray[np.int64], name: str, limit: float) -> int:
    """Number of steps whose feature exceeds `limit`; within a stretch contexts grow by one token a step and sequence."""
    first_step, steps, prefill_seqs, prefill_tokens, decode_seqs, intercept_sum, intercept_max = rows.T[:7]
    none = np.zeros_like(steps)
    lines = {
        "prefill_seqs": (prefill_seqs, none),
        "prefill_tokens": (prefill_tokens, none),
        "decode_seqs": (decode_seqs, none),
        "tokens": (prefill_tokens + decode_seqs, none),
        "decode_context_tokens": (intercept_sum + decode_seqs * first_step, decode_seqs),
        "decode_context_max_tokens": (intercept_max + first_step, np.ones_like(steps)),
    }
    if name not in lines:
        return 0
    start, slope = lines[name]
    start = np.where((decode_seqs > 0) | (slope == 0), start, 0)
    first_above = np.maximum(np.floor((limit - start) / np.maximum(slope, 1)) + 1, 0)
    first_above = np.where(slope > 0, first_above, np.where(start > limit, 0, steps))
    return int(np.maximum(steps - first_above, 0).sum())
