"""Inter-token latency, exact for every token, without a row per token.

Requests that decode together wait for the same steps: a gap between two steps counts once for each request that emitted in
both. So the multiset of all gaps is one number and one weight a step, and the step ends are computed again piece by piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from math import ceil, floor, nan, sqrt

import numpy as np
from numpy.typing import NDArray

from simulator.cluster import NS_PER_S
from simulator.simulate import Result
from simulator.step.steplog import StepLog

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]
Gaps = tuple[Int64, Int64]
"""(gap in nanoseconds, tokens that had it), each int64[m]."""

BIN_BITS = 12
"""Bins of the first pass: 2 ** 12 in every doubling, so that few distinct gaps share one."""
_BIN_OF_ONE = int(np.float64(1).view(np.int64)) >> (52 - BIN_BITS)
STEPS_KEPT = 1 << 21
"""Runs of up to so many steps (32 MiB) are not regenerated for the second pass."""


@dataclass(frozen=True)
class InterTokenLatency:
    """Of all gaps between the successive tokens of a request. NaN where there is none."""

    count: int
    mean_s: float
    std_s: float
    max_s: float
    percentiles_s: dict[float, float]


def inter_token_latency(
    result: Result, percentiles: tuple[float, ...], rows: NDArray[np.bool_] | None = None, *, of_tokens: bool = False
) -> InterTokenLatency:
    """The gaps of all requests, or of those where `rows`, bool[n], is true; percentiles as numpy's, by linear interpolation.

    A gap is one between chunks, as vLLM's clients and its own metrics count (0.26 `benchmarks/serve.py`, `v1/metrics/stats.py`);
    `of_tokens`: one between tokens, 0 between those of a chunk. The two differ with drafts only.
    Gaps that the end of the run cut short are not counted. Memory grows with requests and preemptions, not with tokens.
    """
    logs = [(log, _chosen(log, rows)) for log in result.logs]
    keep = sum(log.num_steps for log in result.logs) <= STEPS_KEPT
    together = sum(_tokens_beyond_chunks(log, rows) for log in result.logs) if of_tokens else 0
    within_chunks = [(np.zeros(1, np.int64), np.array([together]))] if together else []
    kept = [gaps for log, segments in logs for gaps in _gaps(log, segments)] if keep else None

    def gaps() -> Iterator[Gaps]:
        return chain(within_chunks, kept if kept is not None else (piece for log, segments in logs for piece in _gaps(log, segments)))

    histogram, total, squares, longest = np.zeros(0, np.int64), 0.0, 0.0, 0
    for gap_ns, weight in gaps():
        histogram = _add(histogram, _counts(_bins(gap_ns), weight))
        total += float(gap_ns.astype(np.float64) @ weight)
        squares += float(gap_ns.astype(np.float64) ** 2 @ weight)
        longest = max(longest, int(gap_ns.max()))
    count = int(histogram.sum())
    if count == 0:
        return InterTokenLatency(0, nan, nan, nan, dict.fromkeys(percentiles, nan))
    mean = total / count
    ranks = {p: (count - 1) * p / 100 for p in percentiles}
    values = _order_statistics(gaps(), histogram, sorted({rank for r in ranks.values() for rank in (floor(r), ceil(r))}))
    return InterTokenLatency(
        count,
        mean / NS_PER_S,
        sqrt(max(squares / count - mean**2, 0.0)) / NS_PER_S,
        longest / NS_PER_S,
        {p: _between(values[floor(r)], values[ceil(r)], r - floor(r)) / NS_PER_S for p, r in ranks.items()},
    )


def request_itl_s(result: Result, *, of_tokens: bool = False) -> Float64:
    """float64[n, 3]: median, 99th percentile and maximum of each request's gaps, seconds; NaN with fewer than two.

    `of_tokens` as above. Holds the ends of only those steps that unfinished requests reach back to.
    """
    itl_s = np.full((len(result.requests), 3), nan)
    for log in result.logs:
        for row, times_ns in _token_times(log):
            gap_ns = np.sort(np.diff(times_ns))
            if of_tokens:
                gap_ns = np.concatenate([np.zeros(int(result.emitted_tokens[row]) - len(times_ns), np.int64), gap_ns])
            if len(gap_ns):
                itl_s[row] = (_quantile(gap_ns, 0.5) / NS_PER_S, _quantile(gap_ns, 0.99) / NS_PER_S, gap_ns[-1] / NS_PER_S)
    return itl_s


def _chosen(log: StepLog, rows: NDArray[np.bool_] | None) -> Int64:
    """Segments by request, then in order of time."""
    segments = log.segments
    if rows is not None:
        segments = segments[rows[segments[:, 0]]]
    return segments[np.lexsort((segments[:, 2], segments[:, 0]))]


def _tokens_beyond_chunks(log: StepLog, rows: NDArray[np.bool_] | None) -> int:
    """Tokens that came with another one before them in their chunk."""
    row, token, first, last = log.segments.T
    beyond = (log.last_tokens - token) - (last - first)
    return int(beyond.sum() if rows is None else beyond[rows[row]].sum())


def _gaps(log: StepLog, segments: Int64) -> Iterator[Gaps]:
    """All gaps between tokens: those that a preemption made, then the gaps between successive steps, piece by piece."""
    if not len(segments):
        return
    row, _, first, last = segments.T
    again = np.flatnonzero(row[1:] == row[:-1])
    if len(again):
        yield log.end_ns(first[again + 1]) - log.end_ns(last[again]), np.ones(len(again), np.int64)
    begins, ceases = np.sort(first + 1), np.sort(last + 1)
    before_ns, weight_before = 0, 0
    for start, end_ns in log.iter_ends():
        steps = len(end_ns)
        weight = weight_before + np.cumsum(_within(begins, start, steps) - _within(ceases, start, steps))
        gap_ns = np.diff(end_ns, prepend=before_ns)
        before_ns, weight_before = int(end_ns[-1]), int(weight[-1])
        some = weight > 0
        if some.any():
            yield gap_ns[some], weight[some]


def _within(sorted_steps: Int64, start: int, steps: int) -> Int64:
    """int64[steps]: how often each step of a piece occurs."""
    low, high = np.searchsorted(sorted_steps, (start, start + steps))
    counts: Int64 = np.bincount(sorted_steps[low:high] - start, minlength=steps)
    return counts


def _bins(gap_ns: Int64) -> Int64:
    """A float's bits, read as a whole number, are in the order of the floats, with equal bins in every doubling."""
    bits: Int64 = gap_ns.astype(np.float64).view(np.int64)
    bins: Int64 = np.maximum((bits >> (52 - BIN_BITS)) - _BIN_OF_ONE + 1, 0)
    return bins


def _counts(bins: Int64, weight: Int64) -> Int64:
    counts: Int64 = np.bincount(bins, weight).astype(np.int64)
    return counts


def _add(a: Int64, b: Int64) -> Int64:
    longer, shorter = (a, b) if len(a) > len(b) else (b, a)
    longer[: len(shorter)] += shorter
    return longer


def _order_statistics(gaps: Iterator[Gaps], histogram: Int64, ranks: list[int]) -> dict[int, int]:
    """The values at the given ranks (0: the smallest): the gaps in their bins are counted one by one."""
    upto = np.cumsum(histogram)
    bins = np.searchsorted(upto, ranks, side="right")
    values, weights = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for gap_ns, weight in gaps:
        wanted = np.isin(_bins(gap_ns), bins)
        values, group = np.unique(np.concatenate([values, gap_ns[wanted]]), return_inverse=True)
        weights = _counts(group, np.concatenate([weights, weight[wanted]]))
    in_bin = _bins(values)
    found = {}
    for rank, chosen in zip(ranks, bins.tolist(), strict=True):
        inside = in_bin == chosen
        below = int(upto[chosen] - histogram[chosen])
        found[rank] = int(values[inside][np.searchsorted(np.cumsum(weights[inside]), rank - below, side="right")])
    return found


def _token_times(log: StepLog) -> Iterator[tuple[int, Int64]]:
    """Yields (request row, when its tokens were emitted), in the order of their last tokens."""
    segments = _chosen(log, None)
    row, _, first, last = segments.T
    bounds = np.flatnonzero(np.diff(row, prepend=-1, append=-1))
    low, high = bounds[:-1], bounds[1:]
    order = np.argsort(last[high - 1], kind="stable") if len(bounds) > 1 else np.zeros(0, np.int64)
    needed_from = np.minimum.accumulate(first[low[order]][::-1])[::-1] if len(order) else order
    held_ns, held_from, done = np.zeros(0, np.int64), 0, 0
    for _, end_ns in log.iter_ends(1 << 15):
        held_ns = np.concatenate([held_ns, end_ns])
        while done < len(order) and last[high[order[done]] - 1] < held_from + len(held_ns):
            parts = range(int(low[order[done]]), int(high[order[done]]))
            times = [held_ns[first[part] - held_from : last[part] + 1 - held_from] for part in parts]
            yield int(row[parts[0]]), np.concatenate(times)
            done += 1
        if done == len(order):
            return
        passed = min(max(int(needed_from[done]) - held_from, 0), len(held_ns))
        held_ns, held_from = held_ns[passed:], held_from + passed


def _quantile(ascending: Int64, share: float) -> float:
    rank = (len(ascending) - 1) * share
    return _between(int(ascending[floor(rank)]), int(ascending[ceil(rank)]), rank - floor(rank))


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share
