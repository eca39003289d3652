"""A figure with its confidence interval, from runs that differ in their seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, hypot, isnan, log, nan, sqrt

import numpy as np
from scipy.special import stdtrit


@dataclass(frozen=True)
class Interval:
    """`low` and `high` are NaN where one run, or a value that is not finite, tells none."""

    value: float
    low: float = nan
    high: float = nan

    @classmethod
    def of_mean(cls, values: Sequence[float], confidence: float) -> Interval:
        """The mean of independent runs (Student t)."""
        n, mean = len(values), float(np.mean(values))
        if n < 2 or not np.isfinite(values).all():
            return cls(mean)
        half = float(stdtrit(n - 1, (1 + confidence) / 2)) * float(np.std(values, ddof=1)) / sqrt(n)
        return cls(mean, mean - half, mean + half)

    @classmethod
    def of_differences(cls, values: Sequence[float], baseline: Sequence[float], confidence: float) -> Interval:
        """How much more than the baseline under the same seed: a paired t interval."""
        return cls.of_mean([value - base for value, base in zip(values, baseline, strict=True)], confidence)

    @classmethod
    def of_ratios(cls, values: Sequence[float], baseline: Sequence[float], confidence: float) -> Interval:
        """How many times the baseline under the same seed: a paired t interval of the logarithms, so their geometric mean.

        NaN where a value is not above 0.
        """
        if not all(0 < value < np.inf for value in (*values, *baseline)):
            return cls(nan)
        logs = cls.of_mean([float(np.log(value / base)) for value, base in zip(values, baseline, strict=True)], confidence)
        return cls(exp(logs.value), exp(logs.low), exp(logs.high))

    def within(self, least: float, most: float) -> Interval:
        """Its ends kept to what the figure can be."""
        return Interval(self.value, *(end if isnan(end) else min(max(end, least), most) for end in (self.low, self.high)))

    def minus(self, other: Interval) -> Interval:
        """The difference of two independent figures: the distances to their ends add in squares (Zou and Donner 2008)."""
        low = hypot(self.value - self.low, other.high - other.value)
        high = hypot(self.high - self.value, other.value - other.low)
        difference = self.value - other.value
        return Interval(difference, difference - low, difference + high)

    def over(self, other: Interval) -> Interval:
        """The ratio of two independent figures, by the logarithms; NaN where one is not above 0."""
        logs = self._log().minus(other._log())
        return Interval(exp(logs.value), exp(logs.low), exp(logs.high))

    def _log(self) -> Interval:
        return Interval(*(log(end) if end > 0 else nan for end in (self.value, self.low, self.high)))
