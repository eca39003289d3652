"""What a step does after the forward pass: the product with the vocabulary, and the sampler. Of a profile, by positions sampled.

Neither depends on how the layers are quantized or on contexts: a model's width, its vocabulary, the GPU and the number of positions
decide. So a profile that did not time them apart takes them from another of the same width, vocabulary, GPU and tensor parallel size.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.artifacts.artifact import Logits

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

Times = tuple[Int64, Float64]
"""Positions, rising, and nanoseconds."""

APART = 1.1
"""Least ratio of two knots of a sampler's table, but for those that sampling points were put at: its time jumps at some."""


@dataclass(frozen=True, eq=False)
class Sampling:
    """Of a profile's steps."""

    logits: Times
    """Product with the vocabulary: medians."""
    samplers: dict[Logits, Times]
    """Straight lines between knots. A trained model's logits are those of the whole grid; what dummy weights' cost beyond them is known
    at sampling points."""

    @classmethod
    def of(cls, steps: pd.DataFrame) -> Sampling | None:
        """Read off a profile's steps; None: it did not time them apart."""
        if "sample_s" not in steps or steps["sample_s"].isna().all():
            return None
        timed = steps[steps["sample_s"].notna()]
        peaked = timed["peaked"].astype(bool)
        own = timed["point"].str.startswith("sampling ")
        logits = _medians(timed, "logits_s")
        positions, trained_ns = trained = _lines(timed[peaked] if peaked.any() else timed, own)
        if not (own & ~peaked).any():
            return cls(logits, {"trained": trained})
        at, dummy_ns = _medians(timed[own & ~peaked], "sample_s")
        beyond_ns = np.interp(positions, at, dummy_ns - np.interp(at, *trained))
        return cls(logits, {"trained": trained, "dummy": (positions, np.maximum(trained_ns + beyond_ns, 0.0))})

    def logits_ns(self, positions: Int64) -> Float64:
        """float64[k]."""
        return np.interp(positions, *self.logits)

    def sample_ns(self, positions: Int64, logits: Logits = "trained") -> Float64:
        """float64[k]."""
        return np.interp(positions, *self.samplers[logits])

    def regimes(self) -> dict[Logits, dict[str, float]]:
        """As the artifact stores the samplers: a table of times with straight lines between its entries."""
        return {logits: _table(positions.tolist(), times_ns.tolist()) for logits, (positions, times_ns) in self.samplers.items()}


def sampled_tokens(steps: pd.DataFrame) -> pd.Series[int]:
    """`StepFeatures.sampled_tokens` of each step."""
    return steps["prefill_seqs"] + steps["decode_seqs"] + steps["verify_tokens"]


def _medians(steps: pd.DataFrame, column: str) -> Times:
    medians = steps.groupby(sampled_tokens(steps))[column].median()
    return medians.index.to_numpy(np.int64), medians.to_numpy(np.float64) * 1e9


def _lines(steps: pd.DataFrame, own: pd.Series[bool]) -> Times:
    """The sampler's time between knots, by least squares of relative errors: logits differ, and with them its rounds."""
    medians = steps.groupby([steps["point"], sampled_tokens(steps).rename("positions")])["sample_s"].median().reset_index()
    positions, times_ns = medians["positions"].to_numpy(np.int64), medians["sample_s"].to_numpy(np.float64) * 1e9
    knots = _knots(np.unique(positions).tolist(), frozenset(sampled_tokens(steps[own.reindex(steps.index)]).tolist()))
    hats = np.column_stack([np.interp(positions, knots, row) for row in np.eye(len(knots))])
    fitted_ns, *_ = np.linalg.lstsq(hats / times_ns[:, None], np.ones(len(times_ns)), rcond=None)
    return np.array(knots, np.int64), np.maximum(fitted_ns, 0.0)


def _knots(positions: list[int], own: frozenset[int]) -> list[int]:
    """Of `positions`, rising: the least and the greatest, those of sampling points, and others where these are far apart."""
    kept = sorted(own | {positions[0], positions[-1]})
    for position in positions:
        if all(max(position, other) >= APART * min(position, other) for other in kept):
            kept.append(position)
    return sorted(kept)


def _table(positions: list[int], times_ns: list[float]) -> dict[str, float]:
    if len(positions) == 1:
        return {"one": float(f"{times_ns[0]:.6g}")}
    ends: list[int | str] = ["", *positions, ""]
    names = [f"sampled_tokens[{low}:{at}:{high}]" for (low, at), high in zip(pairwise(ends), ends[2:], strict=False)]
    return {name: float(f"{ns:.6g}") for name, ns in zip(names, times_ns, strict=True)}
