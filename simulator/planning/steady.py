"""Steady state: how long a run takes to forget how it began, whether its queue grows, and how sure a mean over runs is."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan, nan, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

Float64 = NDArray[np.float64]

UNFINISHED_SHARE = 0.05
"""Of the measured requests, at the end of the run; they are censored, not dropped."""
GROWTH_BATCHES = 10
GROWTH_P = 0.01
"""A trend is real if chance alone gave such a slope less often than this."""


@dataclass(frozen=True)
class Period:
    """What a run is made of, seconds: arrivals go on to its end, so that those measured are never alone in the service."""

    warmup_s: float
    """How it began is forgotten now."""
    measured_s: float
    """Requests that arrive now are measured."""
    cooldown_s: float
    """They finish now, all but a few."""
    past_s: float = 0.0
    """Traffic of so long before the run is under way when it begins; 0: it begins empty."""

    @property
    def window(self) -> tuple[float, float]:
        """[from, to): when measured requests arrive."""
        return self.warmup_s, self.warmup_s + self.measured_s

    @property
    def end_s(self) -> float:
        return self.warmup_s + self.measured_s + self.cooldown_s

    @classmethod
    def of(cls, lifetimes_s: Float64, warmup_s: float, measured_s: float, past_s: float = 0.0) -> Period:
        """For requests that stay as long as `lifetimes_s`, float64[n]: at least the longest of them is measured."""
        measured_s = max(measured_s, float(lifetimes_s.max()))
        cooldown_s = settling_s(lifetimes_s, UNFINISHED_SHARE * measured_s)
        return cls(float(np.ceil(warmup_s)), float(np.ceil(measured_s)), float(np.ceil(cooldown_s)), float(np.ceil(past_s)))


def settling_s(lifetimes_s: Float64, residual_s: float) -> float:
    """The earliest t with E[(lifetime − t)⁺] ≤ `residual_s`.

    A service that began empty holds, at time t, all requests that one which always ran would hold but rate × E[(lifetime − t)⁺]:
    exactly so if requests do not slow each other down (M/G/∞), and slightly more if they do.
    """
    longest_first = np.sort(lifetimes_s)[::-1]
    n = len(longest_first)
    # E[(L − t)⁺] is linear between lifetimes, here at each of them
    above = np.cumsum(longest_first) - np.arange(1, n + 1) * longest_first
    index = int(np.searchsorted(above, residual_s * n, side="right")) - 1
    return max(float(longest_first[index] - (residual_s * n - above[index]) / (index + 1)), 0.0)


def still_off(started: list[float], levels: list[float], forgotten: float) -> float:
    """Share of the load by which the start's error may still be felt once a warm-up has `forgotten` that share of it.

    `started`, `levels`: requests in the system at the start of each run, and on average while it is measured. What chance alone
    explains (two standard errors over the runs) is not counted.
    """
    off = np.array(started) - np.array(levels)
    chance = 2 * float(off.std(ddof=1)) / sqrt(len(off)) if len(off) > 1 else 0.0
    return max(abs(float(off.mean())) - chance, 0.0) * (1 - forgotten) / max(float(np.mean(levels)), 1.0)


@dataclass(frozen=True)
class Growth:
    """The trend of the number of requests in the system over the measured window."""

    share: float
    """What the trend adds over the window, relative to the mean."""
    p_value: float
    """How often chance alone would give at least such a slope."""

    def exceeds(self, share: float) -> bool:
        """Whether it is real, and adds at least `share`."""
        return self.p_value < GROWTH_P and self.share >= share


def growth(counts: list[Float64], relative_to: list[Float64] | None = None) -> Growth:
    """Regression of batch means on time; the slopes of independent runs say how much of it is chance.

    `counts`: float64[samples] a run, at equal distances. One run alone is judged by its residuals. The share is of their own
    mean, or of that of `relative_to`.
    """
    batches = np.array([[part.mean() for part in np.array_split(series, GROWTH_BATCHES)] for series in counts])
    x = np.linspace(-0.5, 0.5, GROWTH_BATCHES)
    slopes = batches @ x / (x @ x)
    runs, slope = len(slopes), float(slopes.mean())
    if runs > 1:
        error, freedom = float(slopes.std(ddof=1)) / sqrt(runs), runs - 1
    else:
        residuals = batches[0] - batches[0].mean() - slopes[0] * x
        error, freedom = sqrt(float(residuals @ residuals) / (GROWTH_BATCHES - 2) / float(x @ x)), GROWTH_BATCHES - 2
    mean = float(np.mean([series.mean() for series in (counts if relative_to is None else relative_to)]))
    if slope <= 0 or mean <= 0:
        return Growth(0.0 if mean <= 0 else slope / mean, 1.0)
    return Growth(slope / mean, float(1 - stdtr(freedom, slope / error)) if error > 0 else 0.0)


@dataclass(frozen=True)
class Estimate:
    """A figure of all runs together, and its confidence interval from how far the runs differ (Student t)."""

    value: float
    """Without its bias: few runs see too little of the rare, as a high percentile does."""
    low: float
    high: float
    error: float
    """Standard error; NaN for one run, and where a value is infinite."""
    runs: int

    @classmethod
    def of(cls, value: float, alone: list[float], without: list[float], confidence: float) -> Estimate:
        """`alone`: the same figure of each run; `without`: of all runs but it (the delete-one jackknife: Quenouille 1956, Tukey 1958).

        The error is the larger of what the two say. The jackknife alone is too sure of the percentiles of a swinging load: the worst
        run makes them, and all that leave out another one agree (`bench/coverage.py`).
        """
        n = len(alone)
        if n < 2 or not np.isfinite([value, *alone, *without]).all():
            return cls(value, nan, nan, nan, n)
        unbiased = n * value - (n - 1) * float(np.mean(without))
        error = max(sqrt((n - 1) * float(np.var(without))), float(np.std(alone, ddof=1)) / sqrt(n))
        half = float(stdtrit(n - 1, (1 + confidence) / 2)) * error
        return cls(unbiased, unbiased - half, unbiased + half, error, n)

    def chance_below(self, limit: float) -> float:
        """How likely the true figure is at most `limit`."""
        if isnan(self.error) or self.error == 0:
            return float(self.value <= limit)
        return float(stdtr(self.runs - 1, (limit - self.value) / self.error))
