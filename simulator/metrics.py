"""What clients saw of a run: the latencies of every request, and which SLOs they meet.

A request that is unfinished when the run ends is censored, not dropped: how long it has waited is a lower bound of its
latency. Percentiles and shares are then the Kaplan–Meier estimate (Journal of the American Statistical Association 53, 1958),
which equals the plain ones where nothing is censored. A request that its client gave up is not censored but answered never:
its latency is infinite. One that was tried again counts from its first attempt on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, inf, isfinite, isinf, isnan, nan
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simulator.clients.attempts import Outcome
from simulator.cluster import NS_PER_S
from simulator.planning.slo import Slo, Slos
from simulator.simulate import Result
from simulator.step.itl import inter_token_latency, request_itl_s

if TYPE_CHECKING:
    import pandas as pd

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]
Window = tuple[float, float]
"""[from, to) in seconds of the run: requests are those sent in it, throughput is what happened in it."""


@dataclass(frozen=True, eq=False)
class Latency:
    """One latency of many requests; where `observed` is false, the value is a lower bound. Both have shape (n,)."""

    values_s: Float64
    observed: Bool

    def __len__(self) -> int:
        return len(self.values_s)

    @property
    def censored(self) -> int:
        """Number of requests of which only a lower bound is known."""
        return int((~self.observed).sum())

    def percentile(self, percentile: float) -> float:
        """Seconds; NaN without requests, infinite where the run was too short to see it.

        As numpy's (linear interpolation) without censoring; with it, where the estimated share of requests reaches it.
        """
        if not len(self):
            return nan
        if self.observed.all():
            return _percentile(self.values_s, percentile)
        times_s, surviving = kaplan_meier(self.values_s, self.observed)
        reached = np.flatnonzero(surviving <= 1 - percentile / 100 + 1e-12)
        return float(times_s[reached[0]]) if len(reached) else inf

    def percentiles(self, percentiles: Sequence[float]) -> dict[float, float]:
        """Several at once."""
        if len(self) and self.observed.all() and isfinite(self.values_s.max()):
            return dict(zip(percentiles, np.percentile(self.values_s, percentiles).tolist(), strict=True))
        return {p: self.percentile(p) for p in percentiles}

    def answered(self) -> Latency:
        """Without the requests that were given up."""
        kept = np.isfinite(self.values_s)
        return self if kept.all() else Latency(self.values_s[kept], self.observed[kept])

    def mean(self) -> float:
        """Seconds. With censoring the area under the Kaplan–Meier curve as far as it goes: a lower bound."""
        return self.moments()[0]

    def attainment(self, limit_s: float) -> float:
        """Estimated share of the requests that stay within `limit_s`; NaN without requests."""
        if not len(self):
            return nan
        if self.observed.all():
            return float((self.values_s <= limit_s).mean())
        times_s, surviving = kaplan_meier(self.values_s, self.observed)
        passed = int(np.searchsorted(times_s, limit_s, side="right"))
        return 1.0 - float(surviving[passed - 1]) if passed else 0.0

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation, seconds."""
        if not len(self):
            return nan, nan
        if isinf(self.values_s.max()):
            return inf, nan
        if self.observed.all():
            return float(self.values_s.mean()), float(self.values_s.std())
        times_s, surviving = kaplan_meier(self.values_s, self.observed)
        # What no event accounts for lies at the last bound or beyond.
        values_s = np.append(times_s, self.values_s.max())
        mass = -np.diff(surviving, prepend=1.0, append=0.0)
        mean_s = float(values_s @ mass)
        return mean_s, max(float(values_s**2 @ mass) - mean_s**2, 0.0) ** 0.5


def _percentile(values: Float64, percentile: float) -> float:
    """numpy's, where some values are infinite, too: there is nothing to interpolate between them."""
    if isfinite(values.max()):
        return float(np.percentile(values, percentile))
    rank = (len(values) - 1) * percentile / 100
    low, high = np.sort(values)[[floor(rank), ceil(rank)]].tolist()
    return float(low if rank == floor(rank) else high if isinf(high) else low + (high - low) * (rank - floor(rank)))


def kaplan_meier(values: Float64, observed: Bool) -> tuple[Float64, Float64]:
    """(distinct observed values in order, estimated share of requests above each), float64[m] both."""
    order = np.lexsort((~observed, values))  # what happens at the moment of censoring happens before it
    values, observed = values[order], observed[order]
    at_risk = np.arange(len(values), 0, -1)
    surviving = np.cumprod(1.0 - observed / at_risk)[observed]
    times = values[observed]
    last_of_equals = np.append(times[1:] != times[:-1], True)[: len(times)]
    return times[last_of_equals], surviving[last_of_equals]


def latencies(result: Result, window: Window | None = None) -> dict[str, Latency]:
    """`queue`, `ttft`, `ttfvt`, `tpot` and `e2e` of the requests that were sent (in the window).

    Left out: from `tpot`, requests of one token and those given up; from `ttfvt`, outputs that end while thinking, since no number
    of GPUs makes their first visible token appear (`summary` counts them).
    """
    sent = sent_in(result, window)
    return {name: Latency(values[sent & defined], happened[sent & defined]) for name, values, happened, defined in _columns(result)}


def sent_in(result: Result, window: Window | None) -> Bool:
    """bool[n]: the requests that were (first) sent, in the window if there is one; of several attempts the last stands for all."""
    asked_ns = result.asked_ns
    sent = asked_ns >= 0
    if result.attempts is not None:
        sent &= result.attempts.last
    if window is not None:
        low, high = (round(edge * NS_PER_S) for edge in window)
        sent &= (low <= asked_ns) & (asked_ns < high)
    return sent


def _columns(result: Result) -> list[tuple[str, Float64, Bool, Bool]]:
    """(name, value or lower bound in seconds, whether it happened, whether it is defined) of every latency, shape (n,)."""
    requests, asked_ns = result.requests, result.asked_ns
    always = np.ones(len(requests), np.bool_)
    left = ~always if result.attempts is None else result.attempts.left_ns >= 0
    gave_up = ~always if result.attempts is None else result.attempts.gave_up

    def since_asked(name: str, event_ns: Int64, defined: Bool) -> tuple[str, Float64, Bool, Bool]:
        happened = (event_ns >= 0) & (~left | gave_up)
        seconds = (np.where(happened, event_ns, result.end_ns) - asked_ns) / NS_PER_S
        return name, np.where(gave_up & ~happened, inf, seconds), happened | gave_up, defined

    finished, started = result.finish_ns >= 0, result.first_token_ns >= 0
    # The gaps that are still to come can only add to it.
    since_first_ns = np.where(finished, result.finish_ns, result.end_ns) - np.where(started, result.first_token_ns, result.end_ns)
    tpot_s = np.maximum(since_first_ns, 0) / np.maximum(requests.output_tokens - 1, 1) / NS_PER_S
    return [
        since_asked("queue", result.scheduled_ns, always),
        since_asked("ttft", result.first_token_ns, always),
        since_asked("ttfvt", result.visible_ns, requests.visible_token <= requests.output_tokens),
        ("tpot", tpot_s, finished, (requests.output_tokens > 1) & ~left),
        since_asked("e2e", result.finish_ns, always),
    ]


# -- SLOs ---------------------------------------------------------------------------------------------------------------


def within_limits(result: Result, slos: Slos, window: Window | None = None) -> Latency:
    """Each request's worst ratio of latency to limit: it is good if that is at most 1.

    The limits are those of `slos.per_request`. `observed` where the ratio is final: the request has finished, or a bound
    is above its limit already.
    """
    sent = sent_in(result, window)
    n = len(result.requests)
    ratio, final = np.zeros(n), np.ones(n, np.bool_)
    columns = {name: (values, happened, defined) for name, values, happened, defined in _columns(result)}
    for metric, limit_s in slos.per_request.items():
        values, happened, defined = columns[metric]
        ratio = np.where(defined, np.maximum(ratio, values / limit_s), ratio)
        final &= happened | ~defined
    if result.attempts is not None:
        ratio = np.where(result.attempts.gave_up, inf, ratio)
    return Latency(ratio[sent], (final | (ratio > 1))[sent])


def attainment(values: Latency | Float64, limit: float) -> float:
    """Share of the values within the limit; of a `Latency`, with its censored requests taken into account."""
    latency = values if isinstance(values, Latency) else Latency(values, np.ones(len(values), np.bool_))
    return latency.attainment(limit)


@dataclass(frozen=True)
class SloOutcome:
    """What a run says about one SLO."""

    name: str
    value: float
    """Seconds; a share for the goodput."""
    limit: float
    share: float
    """Share of the requests (for ITL: NaN) within the limit."""
    met: bool

    @property
    def headroom(self) -> float:
        """Above 0: met with so much of the limit to spare. Comparable between SLOs: the smallest one binds."""
        return (self.value - self.limit) / self.limit if self.name == "min_goodput_share" else 1 - self.value / self.limit


def judge(result: Result, slos: Slos, window: Window | None = None) -> list[SloOutcome]:
    """The outcome of every SLO, in their order, the goodput last. An SLO on nothing (no such request) is met."""
    found = latencies(result, window)
    outcomes = []
    for slo in slos.limits:
        value, share = _measured(result, slo, found, window)
        outcomes.append(SloOutcome(slo.name, value, slo.limit_s, share, isnan(value) or value <= slo.limit_s))
    if slos.min_goodput_share is not None:
        share, least = within_limits(result, slos, window).attainment(1.0), slos.min_goodput_share
        outcomes.append(SloOutcome("min_goodput_share", share, least, share, isnan(share) or share >= least))
    return outcomes


def _measured(result: Result, slo: Slo, found: dict[str, Latency], window: Window | None) -> tuple[float, float]:
    if slo.metric == "itl":
        return inter_token_latency(result, (slo.percentile,), sent_in(result, window)).percentiles_s[slo.percentile], nan
    latency = found[slo.metric]
    return latency.percentile(slo.percentile), latency.attainment(slo.limit_s)


# -- a row a request ---------------------------------------------------------------------------------------------------


def request_columns(result: Result, *, itl: bool = True) -> dict[str, NDArray[Any]]:
    """Columns with one row a request; what has not happened is NaN, or −1 for the replica. Times in seconds."""
    requests = result.requests
    observed = {
        name: np.where(happened & defined & np.isfinite(values), values, nan) for name, values, happened, defined in _columns(result)
    }
    columns: dict[str, NDArray[Any]] = {
        "request_id": requests.request_id.astype(str),
        "client": np.array(requests.client_names)[requests.client],
        "sent_s": np.where(result.sent_ns >= 0, result.sent_ns / NS_PER_S, nan),
        **{f"{name}_s": values for name, values in observed.items()},
    }
    if itl:
        columns |= dict(zip(("itl_p50_s", "itl_p99_s", "itl_max_s"), request_itl_s(result).T, strict=True))
    if result.attempts is not None:
        attempts = result.attempts
        columns |= {
            "request": attempts.request,
            "attempt": attempts.number,
            "outcome": np.array([outcome.name.lower() for outcome in Outcome])[attempts.outcome],
            "left_s": np.where(attempts.left_ns >= 0, attempts.left_ns / NS_PER_S, nan),
        }
    return columns | {
        "prompt_tokens": requests.prompt_tokens,
        "output_tokens": requests.output_tokens,
        "emitted_tokens": result.emitted_tokens,
        "preemptions": result.preemptions,
        "cached_tokens": result.cached_tokens,
        "replica": result.replica,
        "truncated": requests.truncated,
        "finished": result.finish_ns >= 0,
    }


def request_frame(result: Result, *, itl: bool = True) -> pd.DataFrame:
    """`request_columns` as a data frame; `itl=False` leaves out the three columns that take the longest."""
    import pandas as pd

    return pd.DataFrame(request_columns(result, itl=itl))
