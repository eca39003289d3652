"""What the service must keep: limits on percentiles of latency, and a least share of requests that keep all of them."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from pydantic import Field, model_validator

from simulator.workload.base import Spec

Percentile = Annotated[str, Field(pattern=r"^p(100|\d{1,2}(\.\d+)?)$")]
Limits = dict[Percentile, Annotated[float, Field(gt=0)]]


class Slo(NamedTuple):
    """One percentile of one latency must not exceed `limit_s`."""

    name: str
    """As in a config: `tpot_ms.p99`."""
    metric: str
    percentile: float
    limit_s: float


class Slos(Spec):
    """Service-level objectives. Example: `tpot_ms: {p99: 13}` and `ttft_s: {p50: 0.5, p99: 2}`."""

    ttft_s: Limits = Field({})
    """Time to first token."""
    ttfvt_s: Limits = Field({})
    """Time to first visible token: the first after the thinking."""
    tpot_ms: Limits = Field({})
    """Time per output token after the first."""
    itl_ms: Limits = Field({})
    """Gap between two successive tokens, over all tokens of all requests."""
    e2e_s: Limits = Field({})
    """Time to the last token."""
    min_goodput_share: float | None = Field(None, gt=0, le=1)
    """Least share of requests that keep, each by itself, the limit at the highest percentile given for TTFT, TTFVT, TPOT and E2E."""

    @model_validator(mode="after")
    def _asks_something(self) -> Slos:
        if not self.limits:
            raise ValueError("no limit is given; an example: tpot_ms: {p99: 13}")
        if self.min_goodput_share is not None and not self.per_request:
            raise ValueError("min_goodput_share needs a limit on TTFT, TTFVT, TPOT or E2E that a request can keep")
        return self

    @property
    def limits(self) -> list[Slo]:
        """All limits, seconds."""
        scales = {
            "ttft": ("ttft_s", 1.0),
            "ttfvt": ("ttfvt_s", 1.0),
            "tpot": ("tpot_ms", 1e-3),
            "itl": ("itl_ms", 1e-3),
            "e2e": ("e2e_s", 1.0),
        }
        return [
            Slo(f"{field}.{name}", metric, float(name[1:]), value * scale)
            for metric, (field, scale) in scales.items()
            for name, value in sorted(getattr(self, field).items(), key=lambda item: float(item[0][1:]))
        ]

    @property
    def per_request(self) -> dict[str, float]:
        """Limit by metric that a single request must keep to count as good."""
        return {slo.metric: slo.limit_s for slo in self.limits if slo.metric != "itl"}
