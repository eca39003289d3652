"""How far the GPU is from itself: traces of one workload on one kind of engine, held against each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from validation.compare import Comparison
from validation.intervals import STATISTICS

Repeatability = dict[str, dict[str, float]]
"""By quantity and statistic: the greatest |a / b − 1| between two traces of the same requests."""

SAME_ARRIVALS_S = 0.1
"""Clients are woken within milliseconds; traces whose requests came further apart are not the same."""


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
    """Whether the same requests were sent to the same engine; the machine and the client may be others."""
    if _engine(one) != _engine(other):
        return False
    a, b = one.replay.recording.requests, other.replay.recording.requests
    if len(a) != len(b) or not all((getattr(a, name) == getattr(b, name)).all() for name in ("prompt_tokens", "output_tokens")):
        return False
    # Where a trace's clock begins, before or at the first request, is the recorder's affair.
    apart_ns = (a.arrival_ns - a.arrival_ns[0]) - (b.arrival_ns - b.arrival_ns[0])
    return bool(np.abs(apart_ns).max() < SAME_ARRIVALS_S * 1e9)


def _engine(comparison: Comparison) -> str:
    meta: dict[str, Any] = comparison.replay.recording.meta.model_dump(mode="json", exclude={"name", "overheads", "client"})
    if meta["speculative"]:
        for seen in ("acceptance_length_seen", "acceptance_rates", "proposed"):
            meta["speculative"].pop(seen, None)
    return json.dumps(meta, sort_keys=True)


def _apart(one: Comparison, other: Comparison) -> Repeatability:
    return {
        name: {
            statistic: abs(row.measured[statistic] / other.rows[name].measured[statistic] - 1)
            for statistic in STATISTICS
            if other.rows[name].measured[statistic]
        }
        for name, row in one.rows.items()
        if name in other.rows
    }


def _greatest(before: Repeatability | None, apart: Repeatability) -> Repeatability:
    if before is None:
        return apart
    return {
        name: {statistic: max(value, before.get(name, {}).get(statistic, 0.0)) for statistic, value in row.items()}
        for name, row in apart.items()
    }
