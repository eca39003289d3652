"""What somebody found, held against what is simulated: agrees, disagrees, or cannot be judged and why."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isnan
from typing import Literal

from pydantic import Field, field_validator, model_validator

from simulator.comparing.quantity import quantity
from simulator.planning.interval import Interval
from simulator.workload.base import Spec

Word = Literal["agrees", "disagrees", "cannot be judged"]


class Claim(Spec):
    """A published finding about one variant."""

    variant: str
    metric: str
    of: Literal["ratio", "difference", "value"] | None = None
    """Of the variant to the baseline, or the variant's own value; null: as the comparison compares this metric."""
    low: float | None = Field(None)
    """Least and greatest published value, in the metric's unit; null: only the other one bounds it."""
    high: float | None = Field(None)
    source: str
    """Where it is published: a table, a figure."""
    caveat: str = ""
    """What may explain a difference."""
    unjudged: str = ""
    """Why it cannot be judged, where that is known beforehand."""

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        return quantity(metric).name

    @model_validator(mode="after")
    def _bounded(self) -> Claim:
        if self.low is None and self.high is None and not self.unjudged:
            raise ValueError("give low, high or both: what was found; or unjudged: why nothing can be said of it")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}")
        return self

    @property
    def compared_as(self) -> str:
        """`ratio`, `difference` or `value`."""
        return self.of or ("ratio" if quantity(self.metric).relative else "difference")

    @property
    def edges(self) -> tuple[float, float]:
        """The published range, open ends infinite."""
        return -inf if self.low is None else self.low, inf if self.high is None else self.high


@dataclass(frozen=True)
class Verdict:
    """The word, and the reason where there is something to explain."""

    word: Word
    reason: str = ""


def verdict(claim: Claim, found: Interval, *, hindrance: str = "") -> Verdict:
    """Agrees if the whole interval lies within the published range, disagrees if none of it does.

    Args:
        claim: what was published.
        found: the simulated figure that it speaks of.
        hindrance: why the simulation says nothing about it, such as a cost model that was not measured.
    """
    if claim.unjudged or hindrance:
        return Verdict("cannot be judged", claim.unjudged or hindrance)
    if isnan(found.value):
        return Verdict("cannot be judged", "the simulation has no such figure")
    low, high = claim.edges
    least, most = (found.value, found.value) if isnan(found.low) else (found.low, found.high)
    if most < low or high < least:
        return Verdict("disagrees", claim.caveat)
    if low <= least and most <= high:
        return Verdict("agrees", "")
    edge = low if least < low else high
    return Verdict("cannot be judged", f"the interval {least:.3g} to {most:.3g} reaches over the published {edge:g}: more seeds narrow it")
