"""A comparison with a row a variant and a column a metric, and which variants improve each metric the most."""

from __future__ import annotations

from math import inf, isnan, log

from simulator.comparing.compare import Comparison, Row

LESS_IS_BETTER = ("duration_s", "queue_s", "ttft_s", "ttfvt_s", "tpot_ms", "itl_ms", "e2e_s", "slowdown", "tail_share")
MORE_IS_BETTER = ("slot_use", "fairness", "goodput_share", "goodput_per_s", "output_tokens_per_s", "requests_per_s")
LEAST = 0.005
"""A smaller gain would be printed as 0."""
MANIFOLD = 2.0
"""Ratios from here on are written as such, and not in per cent."""


def wide_table(comparison: Comparison) -> list[list[str]]:
    """The header first; in a cell the value, and how far it is from the baseline: `163 s (-13 ± 3%)`, or `(≈)` where chance explains it."""
    metrics = comparison.options.metrics
    baseline = comparison.options.baseline
    rows = [["", *(comparison.row(baseline, metric).quantity.label for metric in metrics)]]
    for variant in comparison.variants:
        cells = [_cell(comparison.row(variant.name, metric), baseline) for metric in metrics]
        rows.append([variant.name, *(["left out"] * len(metrics) if variant.missing else cells)])
    return rows


def _cell(row: Row, baseline: str) -> str:
    known, level, change = row.quantity, row.level, row.change
    value = known.text(level.value)
    if row.variant == baseline:
        scale = known.points if not known.relative else 100 / level.value if level.value else 0.0
        unit = "%" if known.relative else " points"
        return value if isnan(level.low) else f"{value} (± {scale * (level.high - level.value):.0f}{unit})"
    if isnan(change.value):
        return value
    even = 1.0 if known.relative else 0.0
    if change.low == change.high == even:
        return f"{value} (same)"
    return f"{value} (≈)" if change.low <= even <= change.high else f"{value} ({_moved(row)})"


def _moved(row: Row) -> str:
    """`-13 ± 3%`, `+12 ± 1 points`, `× 4.2, 3.1 to 5.7`."""
    change = row.change
    if row.quantity.relative and change.value >= MANIFOLD:
        return f"× {change.value:.2g}" if isnan(change.low) else f"× {change.value:.2g}, {change.low:.2g} to {change.high:.2g}"
    middle, scale, unit = (1.0, 100.0, "%") if row.quantity.relative else (0.0, row.quantity.points, " points")
    moved = f"{scale * (change.value - middle):+.0f}"
    # of a ratio the interval lies a little to one side: the wider half is said
    half = scale * max(change.high - change.value, change.value - change.low)
    return f"{moved}{unit}" if isnan(half) else f"{moved} ± {half:.0f}{unit}"


def what_pays(comparison: Comparison) -> list[tuple[str, str]]:
    """(metric, sentence) of every metric that has a better side: the three variants that improve it the most, chance excluded."""
    found = []
    for metric in comparison.options.metrics:
        if not metric.startswith((*LESS_IS_BETTER, *MORE_IS_BETTER)):
            continue
        rows = [comparison.row(variant.name, metric) for variant in comparison.variants[1:]]
        gains = sorted(((_gain(row), row) for row in rows if _gain(row) >= LEAST), key=lambda pair: -pair[0])
        best = ", ".join(f"{row.variant} ({_moved(row)})" for _, row in gains[:3])
        found.append((comparison.row(comparison.options.baseline, metric).quantity.label, best or "nothing, beyond chance"))
    return found


def worst_outside(comparison: Comparison) -> dict[str, float]:
    """By feature: the largest share of the time that a variant spends beyond what was measured."""
    worst: dict[str, float] = {}
    for shares in comparison.outside.values():
        for feature, share in shares.items():
            worst[feature] = max(share, worst.get(feature, 0.0))
    return worst


def _gain(row: Row) -> float:
    """How much better than the baseline, for an order; 0 where chance explains it."""
    change, sign = row.change, 1 if row.quantity.name in MORE_IS_BETTER else -1
    if isnan(change.low):
        return 0.0
    if not row.quantity.relative:
        return sign * change.value if min(sign * change.low, sign * change.high) > 0 else 0.0
    ends = [sign * log(end) if end > 0 else -inf for end in (change.low, change.high)]
    return sign * log(change.value) if min(ends) > 0 else 0.0
