"""Numbers and limits in words, as all output of a plan says them."""

from __future__ import annotations

from math import isinf, isnan
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulator.planning.candidate import Check


def duration(seconds: float) -> str:
    """Three digits and a unit: `12.4 ms`, `35.1 s`, `2.5 min`, `1.3 h`; `> run` if a run was too short to see it."""
    if isnan(seconds):
        return "–"
    if isinf(seconds):
        return "> run"
    if abs(seconds) < 1:
        return f"{seconds * 1e3:.3g} ms"
    if abs(seconds) < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if abs(seconds) < 7200 else f"{seconds / 3600:.3g} h"


def slo_label(name: str) -> str:
    """`TPOT p99` of `tpot_ms.p99`."""
    if name == "min_goodput_share":
        return "goodput share"
    metric, _, percentile = name.partition(".")
    return f"{metric.rpartition('_')[0].upper()} {percentile}"


def value_text(name: str, value: float) -> str:
    """A value of an SLO with its unit."""
    return f"{value:.1%}" if name == "min_goodput_share" else duration(value)


def plus_minus(name: str, value: float, half: float) -> str:
    """A value of an SLO and half the width of its interval, in one unit: `12.14 ± 0.71 ms`."""
    if isinf(value) or isnan(half):
        return value_text(name, value)
    if name == "min_goodput_share":
        return f"{100 * value:.1f} ± {100 * half:.1f}%"
    scale, unit = (1e3, "ms") if value < 1 else (1.0, "s") if value < 120 else (1 / 60, "min")
    decimals = 2 if value * scale < 100 else 1
    return f"{value * scale:.{decimals}f} ± {half * scale:.{decimals}f} {unit}"


def check_text(check: Check) -> str:
    """`TPOT p99 is 13.6 ms (limit 13 ms)`."""
    return f"{slo_label(check.name)} is {value_text(check.name, check.estimate.value)} (limit {value_text(check.name, check.limit)})"


def table_text(rows: list[list[str]], left: int = 0) -> list[str]:
    """Columns side by side, the first `left` of them flush left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    cells = [
        [cell.ljust(width) if column < left else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    ]
    return ["  ".join(row).rstrip() for row in cells]
