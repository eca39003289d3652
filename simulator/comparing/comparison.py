"""What `command: compare` compares, as a configuration says it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from simulator.comparing.quantity import quantity
from simulator.comparing.verdict import Claim
from simulator.workload.base import Spec


class CompareConfig(Spec):
    """What `command: compare` compares: this configuration, the baseline, with variants of it under the same traffic."""

    baseline: str = "baseline"
    """What the configuration itself is called."""
    variants: dict[str, list[str]] = Field(min_length=1)
    """Overrides by name, as on the command line: `awq: [opt=awq]`."""
    metrics: list[str] = Field(min_length=1)
    num_seeds: int = Field(8, ge=1)
    """Runs of every variant; the i-th runs of all variants meet the same traffic."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    window_s: tuple[float, float] | None = None
    """Requests sent in this time of a run are measured; null: all of them."""
    layout: Literal["row_a_metric", "row_a_variant"] = "row_a_metric"
    """Of the table; with `row_a_variant` it is also said which variants improve each metric the most."""
    claims: list[Claim] = Field([])
    """What was published about it."""
    title: str = ""
    """The question, in a line."""
    workers: int | None = Field(None, ge=1)
    """Processes; null: one a core."""

    @field_validator("metrics")
    @classmethod
    def _known(cls, metrics: list[str]) -> list[str]:
        return [quantity(name).name for name in metrics]

    @model_validator(mode="after")
    def _consistent(self) -> CompareConfig:
        if self.baseline in self.variants:
            raise ValueError(f"'{self.baseline}' is a variant and the baseline's name, too")
        for claim in self.claims:
            if claim.variant not in {self.baseline, *self.variants}:
                raise ValueError(f"a claim is about '{claim.variant}'; there are {', '.join([self.baseline, *self.variants])}")
            if claim.metric not in self.metrics:
                raise ValueError(f"a claim is about {claim.metric}, which is not among the metrics")
        return self
