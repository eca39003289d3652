"""How far the GPU is from itself: traces of one workload on one kind of engine, held against each other.

Nothing has to declare that one trace repeats another: those repeat each other whose requests have the same lengths, in the same order and
at the same times, of the same kind of GPU, model and engine options (`python -m profiler.record` with the same workload and seed, or
with `workload={kind: replay, path: FOLDER}`). Machine and name may differ, and so may the number of blocks that vLLM found room for.
One that was cut repeats the beginning of the other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from validation.compare import LABELS, Comparison
from validation.replay import quantiles

Float64 = NDArray[np.float64]

Repeatability = dict[str, dict[str, float]]
"""By quantity and statistic: the greatest |a / b − 1| between two traces of the same requests."""

LENGTHS = ("prompt_tokens", "output_tokens")
SENT = (*LENGTHS, "arrival_ns")

SAME_ARRIVALS_S, SAME_SHARE = 0.1, 0.9
"""Clients are woken within milliseconds, but one that stalls sends late for a moment: so many requests must have come so close together."""
SEEN = {"name", "client", "logits", "overheads", "seed", "cut_s", "gpu_memory_utilization"}
"""Of the metadata what does not tell engines apart; older recorders did not tell the share of memory, and the pool shows it."""
SAME_BLOCKS = 0.01
"""Pools of one setting differ by a few blocks from start to start."""


def repeatability(comparisons: Sequence[Comparison]) -> list[Repeatability | None]:
    """For each trace the distance to its repetitions among the others; None: it has none."""
    found: list[Repeatability | None] = [None] * len(comparisons)
    for one, other in combinations(range(len(comparisons)), 2):
        if not _same(comparisons[one], comparisons[other]):
            continue
        apart = _apart(comparisons[one], comparisons[other])
        for index in (one, other):
            found[index] = _greatest(found[index], apart)
    return found


def _same(one: Comparison, other: Comparison) -> bool:
    """Whether the same requests were sent to the same kind of engine in the same way."""
    pools = [each.replay.recording.meta.engine.num_gpu_blocks for each in (one, other)]
    if _engine(one) != _engine(other) or abs(pools[0] / pools[1] - 1) > SAME_BLOCKS:
        return False
    a, b = one.replay.recording.requests, other.replay.recording.requests
    n = min(len(a), len(b))
    if len(a) != len(b) and not _cut_first(one, other):
        return False
    # Of requests sent within a millisecond now the one comes first and now the other: their names tell which they are.
    names = [requests.request_id[:n] for requests in (a, b)]
    orders = [np.argsort(each) if set(names[0]) == set(names[1]) else np.arange(n) for each in names]
    columns = {name: [getattr(requests, name)[:n][order] for requests, order in zip((a, b), orders, strict=True)] for name in SENT}
    if not all((columns[name][0] == columns[name][1]).all() for name in LENGTHS):
        return False
    # Where a trace's clock begins, before or at the first request, is the recorder's affair.
    apart_ns = np.subtract(*(arrival_ns - arrival_ns.min() for arrival_ns in columns["arrival_ns"]))
    return float(np.quantile(np.abs(apart_ns), SAME_SHARE)) < SAME_ARRIVALS_S * 1e9


def _cut_first(one: Comparison, other: Comparison) -> bool:
    """Whether the trace with fewer requests was cut."""
    shorter, _ = sorted((one.replay.recording, other.replay.recording), key=lambda recording: len(recording.requests))
    return shorter.meta.cut_s is not None


def _engine(comparison: Comparison) -> str:
    meta = comparison.replay.recording.meta
    options: dict[str, Any] = meta.model_dump(mode="json", exclude=SEEN)
    del options["engine"]["num_gpu_blocks"]
    if meta.speculative:
        for seen in ("acceptance_length_seen", "acceptance_rates", "proposed"):
            options["speculative"].pop(seen, None)
    # What a server adds to the engine's times is no matter of repeating them.
    return json.dumps([options, meta.sampled_logits, meta.client.startswith("HTTP")], sort_keys=True)


def _apart(one: Comparison, other: Comparison) -> Repeatability:
    """Over the requests that ended in both; preemptions where neither trace was cut."""
    n = min(len(one.measured["e2e_s"]), len(other.measured["e2e_s"]))
    both = np.isfinite(one.measured["e2e_s"][:n]) & np.isfinite(other.measured["e2e_s"][:n])
    found = {
        name: _statistics_apart(one.measured[name][:n][both], other.measured[name][:n][both])
        for name in LABELS
        if name in one.measured and name in other.measured
    }
    a, b = one.preemptions.measured, other.preemptions.measured
    if a and b and not one.unfinished and not other.unfinished:
        found["preemptions"] = {"number": abs(a / b - 1)}
    return found


def _statistics_apart(a: Float64, b: Float64) -> dict[str, float]:
    of_a, of_b = quantiles(a), quantiles(b)
    return {name: abs(of_a[name] / of_b[name] - 1) for name in of_a if of_b[name]} if of_a and of_b else {}


def _greatest(before: Repeatability | None, apart: Repeatability) -> Repeatability:
    if before is None:
        return apart
    return {
        name: {statistic: max(value, before.get(name, {}).get(statistic, 0.0)) for statistic, value in row.items()}
        for name, row in apart.items()
    }
