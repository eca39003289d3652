"""A comparison on one screen: every variant beside the baseline, then what was published about it."""

from __future__ import annotations

import sys
import textwrap
from math import inf, isnan
from typing import Any

from simulator.artifacts.accuracy import accuracy_text
from simulator.comparing.compare import Comparison, Judged, Row
from simulator.comparing.quantity import quantity
from simulator.comparing.wide import what_pays, wide_table, worst_outside
from simulator.planning.interval import Interval
from simulator.reporting.wording import table_text

WIDTH = 120
PLURALS = {"agrees": "agree", "disagrees": "disagree", "cannot be judged": "cannot be judged"}
LEAST_OUTSIDE = 0.005
"""Less of the time beyond what was measured is not worth a line."""


def show(comparison: Comparison) -> None:
    """Prints it, and writes manifest.json, summary.json, runs.parquet and report.html to the folder of the results.

    Raises:
        UserError: the folder cannot be written.
    """
    import numpy as np

    from simulator.comparing.page import page
    from simulator.results import folder, manifest, to_json, write_folder

    traffic, simulated = comparison.traffic, {name for name, _ in comparison.runs}
    contents = {
        "comparison": comparison.options.model_dump(mode="json", exclude={"workers"}),
        "variants": {
            variant.name: manifest(variant.config, traffic.get(variant.name, ""), cost_model=variant.name in simulated)
            for variant in comparison.variants
            if variant.config is not None
        },
    }
    texts = {"manifest.json": to_json(contents), "summary.json": to_json(summary(comparison)), "report.html": page(comparison)}
    runs = comparison.runs
    columns: dict[str, Any] = {"variant": np.array([name for name, _ in runs]), "seed": np.array([seed for _, seed in runs])}
    for metric in next(iter(runs.values()), {}):
        columns[metric] = np.array([values[metric] for values in runs.values()])
    target = write_folder(folder(comparison.config, contents), texts, {"runs.parquet": columns} if runs else {})
    sys.stdout.write(f"{text(comparison)}\n\nreport: {target / 'report.html'}\n")
    sys.stdout.flush()


def text(comparison: Comparison) -> str:
    """One screen, where the metrics and variants are few."""
    parts = [
        textwrap.fill(headline(comparison), WIDTH),
        "\n".join(table_text(table(comparison), left=1 if comparison.options.layout == "row_a_variant" else 2)),
    ]
    if comparison.judged:
        lines = []
        for label, sentence in verdicts(comparison):
            lines += textwrap.wrap(f"{label}: {sentence}", WIDTH, subsequent_indent="    ", break_on_hyphens=False)
        parts.append("\n".join(lines))
    for label, sentence in facts(comparison):
        parts.append(textwrap.fill(f"{label}: {sentence}", WIDTH, subsequent_indent="    ", break_on_hyphens=False))
    return "\n\n".join(parts)


def headline(comparison: Comparison) -> str:
    """The question, or what is compared."""
    config, options = comparison.config, comparison.options
    question = options.title or f"{options.baseline} beside {', '.join(options.variants)}"
    words = [judged.verdict.word for judged in comparison.judged]
    counts = [f"{words.count(word)} {word if words.count(word) == 1 else plural}" for word, plural in PLURALS.items() if word in words]
    published = f" Published findings: {', '.join(counts)}." if counts else ""
    return f"{question.rstrip('.?')}{'?' if question.endswith('?') else '.'} {config.model.name} on {config.gpu.name}.{published}"


def table(comparison: Comparison) -> list[list[str]]:
    """A row a metric and variant, or as `compare.layout` says; the header first."""
    if comparison.options.layout == "row_a_variant":
        return wide_table(comparison)
    rows = [["metric", "variant", "value", "to baseline", f"{comparison.options.confidence:.0%} interval"]]
    for metric in comparison.options.metrics:
        for number, variant in enumerate(comparison.variants):
            row = comparison.row(variant.name, metric)
            value = "left out" if variant.missing else _level(row)
            rows.append(["" if number else row.quantity.label, variant.name, value, *_change(row)])
    return rows


def _level(row: Row) -> str:
    known, level = row.quantity, row.level
    if isnan(level.value):
        return "no number will do" if known.name == "gpus" else "–"
    return known.text(level.value)


def _change(row: Row) -> tuple[str, str]:
    """(change, its interval)."""
    change = row.change
    if isnan(change.value):
        return "", ""
    ends = [_change_text(row, end) for end in (change.low, change.high)]
    return _change_text(row, change.value), "–" if isnan(change.low) else " to ".join(ends)


def _change_text(row: Row, value: float) -> str:
    return f"× {value:.3f}" if row.quantity.relative else f"{row.quantity.points * value:+.1f} points"


def verdicts(comparison: Comparison) -> list[tuple[str, str]]:
    """(verdict, sentence) of every published finding."""
    return [(judged.verdict.word, verdict_text(judged)) for judged in comparison.judged]


def verdict_text(judged: Judged) -> str:
    """What was published, what is simulated, and why nothing can be said where that is so."""
    claim, found = judged.claim, judged.found
    known = quantity(claim.metric)
    published = f"published {_range(judged)} ({claim.source})" if claim.edges != (-inf, inf) else claim.source
    simulated = "" if isnan(found.value) else f", simulated {_figure(judged, found.value)}{_between(judged, found)}"
    maybe = "perhaps: " if judged.verdict.word == "disagrees" else ""
    reason = f"; {maybe}{judged.verdict.reason}" if judged.verdict.reason else ""
    return f"{claim.variant}, {known.label}{'' if claim.compared_as == 'value' else ' to baseline'}: {published}{simulated}{reason}"


def _range(judged: Judged) -> str:
    low, high = judged.claim.edges
    if low == high:
        return _figure(judged, low)
    if low == -inf:
        return f"at most {_figure(judged, high)}"
    return f"at least {_figure(judged, low)}" if high == inf else f"{_figure(judged, low)} to {_figure(judged, high)}"


def _figure(judged: Judged, value: float) -> str:
    known = quantity(judged.claim.metric)
    if judged.claim.compared_as == "ratio":
        return f"× {value:.2f}"
    if judged.claim.compared_as == "difference" and not known.relative:
        return f"{known.points * value:+.1f} points"
    return known.text(value)


def _between(judged: Judged, found: Interval) -> str:
    return "" if isnan(found.low) else f" ({_figure(judged, found.low)} to {_figure(judged, found.high)})"


def facts(comparison: Comparison) -> list[tuple[str, str]]:
    """What it rests on: (label, sentence)."""
    wide = comparison.options.layout == "row_a_variant"
    found = [(f"pays most, {label}", best) for label, best in what_pays(comparison)] if wide else []
    found += [("traffic", f"{name}: {sentence}") for sentence, name in _distinct(comparison.traffic)]
    seeds = len(comparison.seeds)
    paired = "one run each" if seeds == 1 else f"{seeds} runs each; the i-th runs of all variants meet the same traffic (paired t)"
    if comparison.runs:
        found.append(("runs", paired))
    found += [("left out", f"{variant.name}: {variant.missing}") for variant in comparison.variants if variant.missing]
    known = [accuracy_text(variant.config) for variant in comparison.variants if variant.config is not None]
    found += [("accuracy", sentence) for sentence in dict.fromkeys(known) if sentence]
    for name, shares in ({"at worst": worst_outside(comparison)} if wide else comparison.outside).items():
        parts = [f"{feature} in {share:.0%} of the time" for feature, share in shares.items() if share >= LEAST_OUTSIDE]
        if parts:
            found.append(("extrapolated", f"{name}, above what was measured: {', '.join(parts)}"))
    return found


def _distinct(traffic: dict[str, str]) -> list[tuple[str, str]]:
    """(traffic, names of the variants that met it)."""
    return [(text, ", ".join(name for name in traffic if traffic[name] == text)) for text in dict.fromkeys(traffic.values())]


def summary(comparison: Comparison) -> dict[str, Any]:
    """All figures, for programs; every metric in the unit of its name."""
    return {
        "title": comparison.options.title,
        "baseline": comparison.options.baseline,
        "confidence": comparison.options.confidence,
        "seeds": list(comparison.seeds),
        "variants": [{"name": v.name, "overrides": list(v.overrides), "left_out": v.missing or None} for v in comparison.variants],
        "rows": [
            {
                "variant": row.variant,
                "metric": row.quantity.name,
                **vars(row.level),
                "ratio": vars(row.ratio),
                "difference": vars(row.difference),
            }
            for row in comparison.rows
        ],
        "claims": [
            {
                **judged.claim.model_dump(exclude={"of", "unjudged", "caveat"}),
                "of": judged.claim.compared_as,
                "simulated": vars(judged.found),
                "verdict": judged.verdict.word,
                "reason": judged.verdict.reason,
            }
            for judged in comparison.judged
        ],
        "outside_domain": comparison.outside,
    }
