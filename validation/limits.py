"""How near is near enough: every trace against the limits that this project set itself.

Up to capacity E2E and TPOT (mean, p50, p90, p99) within 2 % each and within 1 % in the average of their absolute values, TTFT within 5 %
(mean, p50) and 15 % (p99). Over capacity, where requests were preempted, E2E and TPOT within 3 %, the number of preemptions within 15 %.
Where the GPU itself repeats a figure less well, its limit is 1.5 times that.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from validation.compare import Comparison, relative
from validation.intervals import STATISTICS
from validation.repeat import Repeatability

REPEATED_TIMES = 1.5
"""By so much a figure may miss what the GPU itself repeats."""


class Limit(NamedTuple):
    """Of some statistics of a quantity."""

    label: str
    quantity: str
    statistics: tuple[str, ...]
    up_to_capacity: float | None
    over_capacity: float | None
    """None: no limit there."""

    def allowed(self, over: bool) -> float | None:
        """The limit at that load."""
        return self.over_capacity if over else self.up_to_capacity


NEAR = 0.02
"""Of E2E and TPOT, up to capacity."""

LIMITS = (
    Limit("E2E", "e2e_s", STATISTICS, NEAR, 0.03),
    Limit("TPOT", "tpot_s", STATISTICS, NEAR, 0.03),
    Limit("TTFT mean, p50", "ttft_s", ("mean", "p50"), 0.05, None),
    Limit("TTFT p99", "ttft_s", ("p99",), 0.15, None),
    Limit("preemptions", "preemptions", ("number",), None, 0.15),
    Limit("|E2E, TPOT|", "average_abs", ("mean",), 0.01, None),
)


@dataclass(frozen=True)
class Check:
    """One figure and its limit."""

    quantity: str
    statistic: str
    error: float
    limit: float
    repeated: float | None
    """How far the GPU is from itself there; None: the workload was measured once."""

    @property
    def met(self) -> bool:
        return abs(self.error) <= self.limit


@dataclass(frozen=True)
class Verdict:
    """A trace against the limits."""

    over_capacity: bool
    checks: dict[str, list[Check]]
    """By the labels of `LIMITS`; none where there is no limit, or nothing to hold against it."""
    average_abs: float
    """Of the errors of E2E and TPOT; told over capacity, too, where it has no limit."""

    @property
    def met(self) -> bool:
        return all(check.met for checks in self.checks.values() for check in checks)

    def worst(self, label: str) -> Check | None:
        """The check nearest to its limit, or farthest beyond it."""
        return max(self.checks[label], key=lambda check: abs(check.error) / check.limit, default=None)

    def json(self) -> dict[str, Any]:
        """Every check."""
        checks = [asdict(check) | {"met": check.met} for checks in self.checks.values() for check in checks]
        return {"over_capacity": self.over_capacity, "met": self.met, "average_abs": self.average_abs, "checks": checks}


def judge(comparison: Comparison, repeatability: Repeatability | None) -> Verdict:
    """Holds a trace's errors against the limits; over capacity is a trace in which requests were preempted.

    Where a trace does not tell that, the simulation does; the number of preemptions is then not judged.
    """
    found = comparison.preemptions
    over = bool(found.simulated if found.measured is None else found.measured)
    checks = {}
    for limit in LIMITS:
        allowed = limit.allowed(over)
        errors = _errors(comparison, limit) if allowed is not None else {}
        again = (repeatability or {}).get(limit.quantity, {})
        checks[limit.label] = [
            Check(limit.quantity, name, error, max(allowed or 0.0, REPEATED_TIMES * again.get(name, 0.0)), again.get(name))
            for name, error in errors.items()
            if error is not None
        ]
    return Verdict(over, checks, comparison.average_abs)


def _errors(comparison: Comparison, limit: Limit) -> dict[str, float | None]:
    match limit.quantity:
        case "average_abs":
            return {"mean": comparison.average_abs}
        case "preemptions":
            found = comparison.preemptions
            return {} if found.measured is None else {"number": relative(found.simulated, found.measured)}
    row = comparison.rows.get(limit.quantity)
    return {} if row is None else {name: row.errors[name] for name in limit.statistics}


def limits_header() -> tuple[str, ...]:
    """Of the table of verdicts."""
    return "trace", "load", *(limit.label for limit in LIMITS), "all"


def limits_cells(name: str, verdict: Verdict) -> tuple[str, ...]:
    """A trace's row: of each limit the figure that is nearest to it, or farthest beyond it."""
    load = "over capacity" if verdict.over_capacity else "up to capacity"
    return name, load, *(_cell(verdict, limit) for limit in LIMITS), "met" if verdict.met else "missed"


def _cell(verdict: Verdict, limit: Limit) -> str:
    check = verdict.worst(limit.label)
    if check is None:
        return f"{verdict.average_abs:.2%}" if limit.quantity == "average_abs" else "–"
    which = f"{check.statistic} " if len(limit.statistics) > 1 else ""
    figure = f"{check.error:.2%}" if limit.quantity == "average_abs" else f"{check.error:+.2%}"
    widened = f" of {check.limit:.2%}" if check.limit > (limit.allowed(verdict.over_capacity) or 0.0) else ""
    return f"{'met' if check.met else 'missed'} {which}{figure}{widened}"


def limits_legend() -> list[str]:
    """What the table's limits are."""
    within = {
        "up to capacity": ((limit.label, limit.up_to_capacity) for limit in LIMITS),
        "over capacity (requests were preempted)": ((limit.label, limit.over_capacity) for limit in LIMITS),
    }
    return [
        *(f"{load}: " + ", ".join(f"{label} within {value:.0%}" for label, value in values if value) for load, values in within.items()),
        f"or within {REPEATED_TIMES:g} × what the GPU itself repeats, where that is more (“of …”); shown is the worst against its limit",
    ]
