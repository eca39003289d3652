"""A comparison as one HTML file: the table, the published findings, and a figure a metric."""

from __future__ import annotations

from math import isfinite, isnan
from typing import Any

from simulator.comparing.compare import Comparison, Judged
from simulator.comparing.report import facts, headline, table, verdicts
from simulator.reporting.charts import ANSWER, LIMIT, MORE, Chart, axes
from simulator.reporting.page import document, section

WORDS = {"agrees": "#3a8f5c", "disagrees": LIMIT, "cannot be judged": MORE}


def page(comparison: Comparison) -> str:
    """The HTML text."""
    rows = table(comparison)
    findings = [["verdict", "finding"], *([word, sentence] for word, sentence in verdicts(comparison))]
    tables = section("Variants", rows, [False] * (len(rows) - 1))
    if comparison.judged:
        tables += section("Published findings", findings, [False] * len(comparison.judged))
    return document(
        title=f"{comparison.config.name}: {comparison.config.model.name} on {comparison.config.gpu.name}",
        eyebrow="What does it do to my service?",
        headline=headline(comparison),
        facts=facts(comparison),
        table=f'<div class="prose">{tables}</div>',
        drawn=[chart for metric in comparison.options.metrics if (chart := changes(comparison, metric))],
    )


def changes(comparison: Comparison, metric: str) -> Chart | None:
    """Each variant's change with its interval, and what was published about it; None: nothing changed that could be compared."""
    rows = [comparison.row(variant.name, metric) for variant in comparison.variants[1:]]
    rows = [row for row in rows if not isnan(row.change.value)]
    if not rows:
        return None
    known = rows[0].quantity
    scale = known.points if not known.relative else 1.0
    figure = axes("ratio to the baseline" if known.relative else "difference to the baseline, percentage points", "")
    figure.add_vline(x=1.0 if known.relative else 0.0, line={"color": "#9aa5b1", "width": 1})
    compared_as = "ratio" if known.relative else "difference"
    for judged in comparison.judged:
        if judged.claim.metric == metric and judged.claim.compared_as == compared_as:
            _published(figure, judged, scale)
    figure.add_scatter(
        x=[row.change.value * scale for row in rows], y=[row.variant for row in rows], mode="markers", name="simulated",
        marker={"size": 10, "color": ANSWER},
        error_x={
            "type": "data", "symmetric": False, "color": ANSWER, "thickness": 2, "width": 6,
            "array": [_half(row.change.high, row.change.value) * scale for row in rows],
            "arrayminus": [_half(row.change.value, row.change.low) * scale for row in rows],
        },
        customdata=[known.text(row.level.value) for row in rows], hovertemplate="%{y}: %{x:.3f} (%{customdata})<extra></extra>",
    )  # fmt: skip
    names = [variant.name for variant in comparison.variants[1:]]
    figure.update_yaxes(categoryorder="array", categoryarray=names, range=[len(names) - 0.5, -0.5], tickvals=names)
    base = comparison.row(comparison.options.baseline, metric)
    caption = f"{comparison.options.baseline}: {known.text(base.level.value)}. Bars: {comparison.options.confidence:.0%} interval."
    if any(judged.claim.metric == metric for judged in comparison.judged):
        caption += " Wide bands: what was published; green where it agrees, red where not, grey where it cannot be judged."
    return Chart(known.label, caption, figure)


def _half(high: float, low: float) -> float:
    return 0.0 if isnan(high - low) else high - low


def _published(figure: Any, judged: Judged, scale: float) -> None:
    """The published range as a wide band behind the variant's point."""
    low, high = judged.claim.edges
    if isfinite(low) and isfinite(high):
        figure.add_scatter(
            x=[low * scale, high * scale], y=[judged.claim.variant] * 2, mode="lines+markers" if low == high else "lines",
            line={"width": 16, "color": WORDS[judged.verdict.word]}, opacity=0.35, showlegend=False,
            hovertemplate=f"published: %{{x:.3g}}<extra>{judged.claim.source}</extra>",
        )  # fmt: skip
