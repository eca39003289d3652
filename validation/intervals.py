"""Confidence intervals of errors, by resampling blocks of requests.

Requests that are served together wait for the same steps, so their errors go together: drawn one by one they would pretend to be
independent, and the interval would be too narrow. Blocks of successive arrivals, as long as a request is served, keep them together
(a circular block bootstrap). Measured and simulated are drawn together: it is the error that is resampled, not the load.

The interval says how far the error would move with other requests of this kind. It does not hold what the GPU itself does differently
the next time: that is the repeatability, which stands beside it.
"""

from __future__ import annotations

from math import ceil

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Interval = tuple[float, float]

STATISTICS = ("mean", "p50", "p90", "p99")

RESAMPLES = 400
CONFIDENCE = 0.95
FEWEST_BLOCKS = 8
"""Fewer would hardly be resampled at all."""


def statistics(values: Float64) -> Float64:
    """float64[4, …]: mean and percentiles along the last axis, in the order of `STATISTICS`."""
    return np.concatenate([values.mean(axis=-1)[None], np.quantile(values, (0.5, 0.9, 0.99), axis=-1)])


def resampled(arrival_s: Float64, e2e_s: Float64) -> NDArray[np.int64]:
    """int64[RESAMPLES, n] rows of requests in the order of arrival, in blocks of as many as arrive while one is served."""
    n = len(arrival_s)
    span_s = float(arrival_s[-1] - arrival_s[0]) or 1.0
    length = max(1, min(ceil(float(np.mean(e2e_s)) * n / span_s), n // FEWEST_BLOCKS))
    random = np.random.default_rng(0)
    starts = random.integers(n, size=(RESAMPLES, ceil(n / length)))
    rows: NDArray[np.int64] = ((starts[:, :, None] + np.arange(length)) % n).reshape(RESAMPLES, -1)[:, :n]
    return rows


def intervals(simulated: Float64, measured: Float64, arrival_s: Float64, e2e_s: Float64) -> dict[str, Interval | None]:
    """Of the relative error of each statistic; None where 0 was measured. All arguments float64[n], in the order of arrival."""
    rows = resampled(arrival_s, e2e_s)
    of_simulated, of_measured = statistics(simulated[rows]), statistics(measured[rows])
    errors = np.divide(of_simulated, of_measured, out=np.full_like(of_measured, np.nan), where=of_measured != 0) - 1
    ends = np.quantile(errors, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=-1).T
    return {
        name: (float(low), float(high)) if np.isfinite(high - low) else None for name, (low, high) in zip(STATISTICS, ends, strict=True)
    }
