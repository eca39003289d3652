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


@dataclass(frozen=True, eq=False)
class Sampling:
    """Medians of the profiled steps."""

    logits: Times
    """Product with the vocabulary."""
    samplers: dict[Logits, Times]

    @classmethod
    def of(cls, steps: pd.DataFrame) -> Sampling | None:
        """Read off a profile's steps; None: it did not time them apart."""
        if "sample_s" not in steps or steps["sample_s"].isna().all():
            return None
        timed = steps[steps["sample_s"].notna()]
        own = timed[timed["point"].str.startswith("sampling ")]
        samplers: dict[Logits, Times] = {}
        for name, peaked in (("trained", True), ("dummy", False)):
            rows = own[own["peaked"].astype(bool) == peaked]
            if len(rows):
                samplers[name] = _medians(rows, "sample_s")  # type: ignore[index]  # the two names of `Logits`
        return cls(_medians(timed, "logits_s"), samplers or {"trained": _medians(timed, "sample_s")})

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


def _table(positions: list[int], times_ns: list[float]) -> dict[str, float]:
    if len(positions) == 1:
        return {"one": float(f"{times_ns[0]:.6g}")}
    ends: list[int | str] = ["", *positions, ""]
    names = [f"sampled_tokens[{low}:{at}:{high}]" for (low, at), high in zip(pairwise(ends), ends[2:], strict=False)]
    return {name: float(f"{ns:.6g}") for name, ns in zip(names, times_ns, strict=True)}
