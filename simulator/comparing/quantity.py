"""What a comparison compares: figures of a run, by the names that a configuration gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import isnan, nan
from typing import Any, Literal

from simulator.artifacts.accuracy import LABELS
from simulator.reporting.summary import BENCH_NAMES
from simulator.reporting.wording import duration

Kind = Literal["s", "ms", "share", "percent", "count", "rate"]


@dataclass(frozen=True)
class Quantity:
    """One figure."""

    name: str
    """As in a config: `tpot_ms.p99`."""
    label: str
    key: str
    """Of `summary.summary`; empty if it is not of a run."""
    kind: Kind

    @property
    def relative(self) -> bool:
        """Whether variants are compared by their ratio; shares are by their difference, but those of a pool whose size is arbitrary."""
        return self.kind not in {"share", "percent"} or self.name.startswith("kv_usage")

    @property
    def points(self) -> float:
        """Percentage points in 1 of a difference."""
        return 100.0 if self.kind == "share" else 1.0

    def read(self, figures: Mapping[str, Any]) -> float:
        """Its value in a run's figures, in the unit of its name; NaN where the run has none."""
        value = float(figures.get(self.key, nan))
        return value / 1000 if self.kind == "s" and self.key.endswith("_ms") else value

    def text(self, value: float) -> str:
        """The value with its unit."""
        if isnan(value):
            return "–"
        if self.kind == "share":
            return f"{value:.1%}"
        if self.kind == "percent":
            return f"{value:.1f}%"
        if self.kind in {"s", "ms"}:
            return duration(value / 1000 if self.kind == "ms" else value)
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


_LATENCIES = {"queue_s": "queue", "ttft_s": "TTFT", "ttfvt_s": "TTFVT", "tpot_ms": "TPOT", "itl_ms": "ITL", "e2e_s": "E2E"}
_STATISTICS = {"mean": "mean", "p50": "median", "p90": "p90", "p95": "p95", "p99": "p99"}
_OTHERS: list[tuple[str, str, str, Kind]] = [
    ("duration_s", "running time", "duration", "s"),
    ("output_tokens_per_s", "output tokens/s", "output_throughput", "rate"),
    ("requests_per_s", "requests/s", "request_throughput", "rate"),
    ("goodput_per_s", "goodput", "request_goodput", "rate"),
    ("goodput_share", "goodput share", "goodput_share", "share"),
    ("kv_usage.mean", "KV use, mean", "kv_usage_mean", "share"),
    ("kv_usage.max", "KV use, max", "kv_usage_max", "share"),
    ("running.mean", "running, mean", "running_mean", "count"),
    ("running.max", "running, max", "running_max", "count"),
    ("waiting.mean", "waiting, mean", "waiting_mean", "count"),
    ("waiting.max", "waiting, max", "waiting_max", "count"),
    ("preemptions", "preemptions", "preemptions", "count"),
    ("gpu_busy", "GPU busy", "gpu_utilization", "share"),
    ("slot_use", "slot use", "straggler_slot_use", "share"),
    ("tail_share", "straggler time", "straggler_tail", "share"),
    ("slowdown.mean", "slowdown, mean", "mean_slowdown", "count"),
    ("slowdown.p99", "slowdown, p99", "p99_slowdown", "count"),
    ("fairness", "fairness", "slowdown_fairness", "share"),
    ("held_back", "held back", "held_back", "count"),
    ("gpus", "GPUs", "", "count"),
    ("accuracy.mean", "accuracy, mean", "", "percent"),
    *((f"accuracy.{name}", f"accuracy, {label}", "", "percent") for name, label in LABELS.items()),
]


def _all() -> dict[str, Quantity]:
    found = {name: Quantity(name, label, key, kind) for name, label, key, kind in _OTHERS}
    for stem, label in _LATENCIES.items():
        metric, _, unit = stem.rpartition("_")
        for end, statistic in _STATISTICS.items():
            name = f"{stem}.{end}"
            key = f"{statistic}_{BENCH_NAMES.get(metric, metric)}_ms"
            found[name] = Quantity(name, f"{label} {end}", key, "ms" if unit == "ms" else "s")
    return found


QUANTITIES = _all()
"""By name. `gpus` is a plan's answer, and accuracies are published, not simulated."""


def quantity(name: str) -> Quantity:
    """The quantity of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in QUANTITIES:
        near = get_close_matches(name, QUANTITIES, n=1)
        latencies = f"{', '.join(_LATENCIES)} (each .{', .'.join(_STATISTICS)})"
        others = ", ".join(other[0] for other in _OTHERS)
        raise ValueError(f"unknown metric '{name}'; {f'did you mean {near[0]}? ' if near else ''}valid: {others}, {latencies}")
    return QUANTITIES[name]
