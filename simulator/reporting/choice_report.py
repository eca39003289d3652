"""What each optimization needs, on one screen and as a page: the cheapest first said, its accuracy beside it."""

from __future__ import annotations

import sys
import textwrap
from math import isnan, nan
from typing import Any

from simulator.artifacts.accuracy import Z, accuracy_text, change, is_plain
from simulator.planning.candidate import pooled
from simulator.planning.choice import Choice, Option
from simulator.report import summary as plan_summary
from simulator.report import traffic
from simulator.reporting.charts import ANSWER, MORE, Chart, axes
from simulator.reporting.page import document, section
from simulator.reporting.wording import duration, slo_label, table_text, value_text

WIDTH = 120


def show(choice: Choice) -> None:
    """Prints it, and writes manifest.json, summary.json and report.html to the folder of the results.

    Raises:
        UserError: the folder cannot be written.
    """
    from simulator.results import folder, manifest, to_json, write_folder

    weighed = [option for option in choice.options if option.config is not None]
    # The configuration's own optimization need not have been measured: the manifest is of those that were weighed.
    contents = {"options": {option.name: manifest(option.config, _served(choice)) for option in weighed if option.config is not None}}
    texts = {"manifest.json": to_json(contents), "summary.json": to_json(summary(choice)), "report.html": page(choice)}
    target = write_folder(folder(choice.config, contents), texts, {})
    sys.stdout.write(f"{text(choice)}\n\nreport: {target / 'report.html'}\n")
    sys.stdout.flush()


def text(choice: Choice) -> str:
    """One screen."""
    parts = [textwrap.fill(headline(choice), WIDTH, break_on_hyphens=False), "\n".join(table_text(table(choice), left=1))]
    for label, sentence in facts(choice):
        parts.append(textwrap.fill(f"{label}: {sentence}", WIDTH, subsequent_indent="    ", break_on_hyphens=False))
    return "\n\n".join(parts)


def headline(choice: Choice) -> str:
    """The answer in a sentence."""
    config, best, plain = choice.config, choice.best, choice.plain
    service = f"{config.model.name} on {config.gpu.name}"
    if best is None:
        return f"No number of GPUs up to {config.plan.max_gpus} will do for {service}, with any of {_names(choice.options)}."
    answer = f"You need {_gpus(best)} for {service}, {'without an optimization' if best is plain else f'with {best.name}'}"
    others = [option for option in choice.options if option.plan is not None and option is not best]
    if best is plain:
        beside = f": no optimization of {_names(others)} needs fewer" if others else ""
    elif plain is not None and plain.gpus is not None and best.gpus is not None:
        beside = f", {plain.gpus - best.gpus} fewer than without it"
    else:
        beside = f", the cheapest of {_names(choice.options)}"
    change_text = "" if best.config is None or is_plain(best.config) else f"; accuracy {_accuracy(best)}"
    return f"{answer}{beside}{change_text}."


def _names(options: list[Option]) -> str:
    return ", ".join(option.name for option in options)


def _gpus(option: Option) -> str:
    return f"{option.gpus} GPU{'' if option.gpus == 1 else 's'}"


def table(choice: Choice) -> list[list[str]]:
    """A row an optimization, the header first."""
    rows = [["optimization", "GPUs", "interval", "binding SLO", "E2E p50", "KV max", "accuracy"]]
    for option in choice.options:
        if option.plan is None:
            rows.append([option.name, "left out", "", "", "", "", _accuracy(option)])
            continue
        chosen, interval = option.plan.chosen, option.plan.interval
        if chosen is None:
            rows.append([option.name, "none will do", "", "", "", "", _accuracy(option)])
            continue
        binding, trials = chosen.binding, chosen.trials
        rows.append([
            f"{option.name}{' ←' if option is choice.best else ''}",
            str(option.gpus),
            "–" if interval is None else f"{interval[0]} to {interval[1] or 'more'}",
            f"{slo_label(binding.name)} {value_text(binding.name, binding.estimate.value)}",
            duration(pooled(trials, "e2e").percentile(50)),
            f"{max(float(trial.kv_usage.max()) for trial in trials):.0%}",
            _accuracy(option),
        ])  # fmt: skip
    return rows


def _accuracy(option: Option) -> str:
    if option.config is None:
        return ""
    if is_plain(option.config):
        return "as published"
    found = change(option.config.model.name, option.config.opt.weights, option.config.opt.kv_cache_dtype)
    return "not published" if found is None else found.short()


def facts(choice: Choice) -> list[tuple[str, str]]:
    """What it rests on: (label, sentence)."""
    found = [("left out", f"{option.name}: {option.reason}") for option in choice.options if option.plan is None]
    found += [
        ("accuracy", known)
        for option in choice.options
        if option.plan is not None and option.config is not None and (known := accuracy_text(option.config))
    ]
    assumed = ((option.name, option.plan.question.acceptance) for option in choice.options if option.plan is not None)
    found += [("drafts", f"{name}: {acceptance.in_words()}") for name, acceptance in assumed if acceptance is not None]
    return [*found, ("traffic", f"{_served(choice)}; the same for all")]


def _served(choice: Choice) -> str:
    return next((traffic(option.plan) for option in choice.options if option.plan is not None), "nothing")


def summary(choice: Choice) -> dict[str, Any]:
    """All figures, for programs: each plan's own under its optimization."""
    return {
        "best": None if choice.best is None else choice.best.name,
        "gpus": None if choice.best is None else choice.best.gpus,
        "options": [
            {
                "name": option.name,
                "overrides": list(option.overrides),
                "gpus": option.gpus,
                "left_out": option.reason or None,
                "accuracy": _accuracy_figures(option),
                "plan": None if option.plan is None else plan_summary(option.plan),
            }
            for option in choice.options
        ],
    }


def _accuracy_figures(option: Option) -> dict[str, Any] | None:
    if option.config is None:
        return None
    found = change(option.config.model.name, option.config.opt.weights, option.config.opt.kv_cache_dtype)
    return None if found is None else {"points": found.points, "interval_95": Z * found.mean.error, "source": found.mean.source}


def page(choice: Choice) -> str:
    """The HTML text."""
    rows = table(choice)
    marked = [option is choice.best for option in choice.options]
    return document(
        title=f"How many GPUs? {choice.config.model.name} on {choice.config.gpu.name}",
        eyebrow="How many GPUs, with which optimization?",
        headline=headline(choice),
        facts=facts(choice),
        table=section("Optimizations weighed", rows, marked),
        drawn=[_chart(choice)] if choice.best else [],
    )


def _chart(choice: Choice) -> Chart:
    options = [option for option in choice.options if option.gpus is not None]
    figure = axes("", "GPUs")
    gpus = [float(option.gpus or nan) for option in options]
    ends = [option.plan.interval if option.plan else None for option in options]
    above = [float(end[1] or end[0]) - value if end else nan for end, value in zip(ends, gpus, strict=True)]
    below = [value - float(end[0]) if end else nan for end, value in zip(ends, gpus, strict=True)]
    figure.add_bar(
        x=[option.name for option in options], y=gpus, marker={"color": [ANSWER if option is choice.best else MORE for option in options]},
        width=0.5, showlegend=False, hovertemplate="%{x}: %{y} GPUs<extra></extra>",
        error_y={
            "type": "data", "symmetric": False, "thickness": 1.5, "width": 7,
            "array": [0 if isnan(x) else x for x in above], "arrayminus": [0 if isnan(x) else x for x in below],
        },
    )  # fmt: skip
    return Chart("GPUs needed", "With the interval of each answer. Blue: the fewest.", figure)
