"""The figures of a plan's report (Plotly)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite, isnan
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simulator.metrics import Latency, kaplan_meier
from simulator.plan import Plan
from simulator.planning.candidate import GOODPUT, Candidate, pooled
from simulator.planning.slo import Slo
from simulator.reporting.wording import duration, slo_label

if TYPE_CHECKING:
    import plotly.graph_objects as go

INK, GRID, LIMIT, BAND = "#1c2733", "#e3e8ee", "#c2352b", "rgba(31,95,166,0.15)"
ANSWER, FEWER, MORE = "#1f5fa6", "#d9822b", "#7a8794"
SERIES = (ANSWER, FEWER, "#3a8f5c", "#7d5ba6", "#b0833a", "#4a90a4")
FAR = 2
"""A limit beyond so many times the longest latency is told, not drawn: it would squeeze the curves."""
POINTS = 300
"""Of a curve: more are not seen."""
NAMES = {
    "ttft": "Time to first token",
    "ttfvt": "Time to first visible token",
    "tpot": "Time per output token",
    "itl": "Inter-token latency",
    "e2e": "End-to-end latency",
}


@dataclass(frozen=True)
class Chart:
    """A figure, and what it shows in a sentence."""

    title: str
    caption: str
    figure: go.Figure


def charts(plan: Plan) -> list[Chart]:
    """All figures that the plan has evidence for: none if nothing was simulated."""
    shown = _shown(plan)
    if shown is None:
        return []
    by_metric = [_distribution(plan, metric) for metric in ("ttft", "ttfvt", "tpot", "e2e")]
    return [
        _attainment(plan),
        _binding(plan, shown),
        *(chart for chart in by_metric if chart),
        _kv_usage(plan, shown),
        _requests(plan, shown),
    ]


def _shown(plan: Plan) -> Candidate | None:
    """The answer; without one the largest size tried."""
    return plan.chosen or next(reversed(plan.candidates.values()), None)


def axes(x_title: str, y_title: str) -> go.Figure:
    """An empty figure in the style of all reports."""
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.update_layout(
        template="none",
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        margin={"l": 64, "r": 16, "t": 8, "b": 48},
        height=320,
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hoverlabel={"font": {"size": 12}},
    )
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": "#9aa5b1", "ticks": "outside", "tickcolor": "#9aa5b1", "automargin": True}
    title = {"font": {"size": 12}, "standoff": 10}
    figure.update_xaxes(title={"text": x_title, **title}, **axis)
    figure.update_yaxes(title={"text": y_title, **title}, **axis)
    return figure


def _limit(figure: Any, value: float, text: str, *, vertical: bool = False) -> None:
    line = {"color": LIMIT, "width": 1.5, "dash": "dash"}
    label = {"annotation_text": text, "annotation_font_color": LIMIT, "annotation_font_size": 12}
    if vertical:
        figure.add_vline(x=value, line=line, **label, annotation_position="bottom right", annotation_bgcolor="rgba(255,255,255,0.8)")
    else:
        figure.add_hline(y=value, line=line, **label, annotation_position="top left")


# -- against the number of GPUs --------------------------------------------------------------------------------------------


def _attainment(plan: Plan) -> Chart:
    figure = axes("GPUs", "requests within the limit")
    gpus, slos = _gpus(plan), plan.question.slos
    needed = {slo.name: slo.percentile / 100 for slo in slos.limits} | {GOODPUT: slos.min_goodput_share or 0.0}
    least = 1.0
    for index, check in enumerate(next(iter(plan.candidates.values())).checks):
        shares = [candidate.checks[index].share for candidate in plan.candidates.values()]
        if isnan(shares[0]):  # ITL is of gaps, not of requests
            continue
        color, label, target = SERIES[index % len(SERIES)], slo_label(check.name), needed[check.name]
        figure.add_scatter(
            x=gpus, y=shares, name=f"{label} ({100 * target:g}% needed)", mode="lines+markers", marker={"size": 9, "color": color},
            hovertemplate="%{x} GPUs: %{y:.2%}<extra>" + label + "</extra>",
        )  # fmt: skip
        figure.add_hline(y=target, line={"color": color, "width": 1.2, "dash": "dash"})
        least = min(least, *shares, target)
    figure.update_yaxes(tickformat=".0%", range=[max(least - 0.15, 0), 1.03])
    figure.update_layout(showlegend=True)
    _whole_gpus(figure, gpus)
    return Chart("SLO attainment", "Share of the measured requests within each limit; dashed: the share that is needed.", figure)


def _binding(plan: Plan, shown: Candidate) -> Chart:
    name = shown.binding.name
    label, gpus = slo_label(name), _gpus(plan)
    checks = [next(check for check in candidate.checks if check.name == name) for candidate in plan.candidates.values()]
    scale, unit = _unit([check.estimate.value for check in checks]) if name != GOODPUT else (100.0, "%")
    values = [check.estimate.value * scale for check in checks]
    half = [0.0 if isnan(check.estimate.high) else (check.estimate.high - check.estimate.value) * scale for check in checks]
    colors = [
        ANSWER if candidate.num_replicas == plan.num_replicas else MORE if candidate.suffices else FEWER
        for candidate in plan.candidates.values()
    ]
    figure = axes("GPUs", f"{label} ({unit})")
    figure.add_scatter(
        x=gpus, y=[value if isfinite(value) else None for value in values], mode="lines+markers", line={"color": "#b8c2cc"},
        marker={"size": 11, "color": colors}, error_y={"type": "data", "array": half, "color": INK, "thickness": 1.5, "width": 7},
        hovertemplate="%{x} GPUs: %{y:.4g} " + unit + "<extra></extra>", showlegend=False,
    )  # fmt: skip
    _limit(figure, checks[0].limit * scale, f"limit {checks[0].limit * scale:.4g} {unit}")
    _whole_gpus(figure, gpus)
    confidence = f"{plan.question.confidence:.0%}"
    return Chart(f"The SLO that binds: {label}", f"With its {confidence} confidence interval. Blue: the answer; orange: too few.", figure)


def _gpus(plan: Plan) -> list[int]:
    return [num * plan.question.gpus_per_replica for num in plan.candidates]


def _whole_gpus(figure: Any, gpus: list[int]) -> None:
    figure.update_xaxes(tickmode="array", tickvals=gpus, range=[gpus[0] - 0.5, gpus[-1] + 0.5])


# -- distributions ---------------------------------------------------------------------------------------------------------


def _distribution(plan: Plan, metric: str) -> Chart | None:
    curves = [(candidate, pooled(candidate.trials, metric)) for candidate in _neighbours(plan)]
    curves = [(candidate, latency) for candidate, latency in curves if latency.observed.any()]
    if not curves:
        return None
    most = max(latency.values_s[latency.observed].max() for _, latency in curves)
    limits = [slo for slo in plan.question.slos.limits if slo.metric == metric]
    drawn = [slo for slo in limits if slo.limit_s <= FAR * most]
    scale, unit = _unit([most])
    figure = axes(f"{metric.upper()} ({unit})", "share of requests")
    for candidate, latency in curves:
        gpus = candidate.num_replicas * plan.question.gpus_per_replica
        color = ANSWER if candidate.num_replicas == plan.num_replicas else MORE if candidate.suffices else FEWER
        x, y = _curve(latency)
        figure.add_scatter(
            x=np.round(x * scale, 6), y=np.round(y, 5), name=f"{gpus} GPUs", mode="lines", hovertemplate="%{x:.4g} " + unit + ": %{y:.2%}",
            line={"color": color, "width": 3 if candidate.num_replicas == plan.num_replicas else 1.8},
        )  # fmt: skip
    for slo in drawn:
        text = f"p{slo.percentile:g} ≤ {slo.limit_s * scale:.4g} {unit}"
        _limit(figure, slo.limit_s * scale, text, vertical=True)
    if _spans_decades([latency for _, latency in curves]):
        figure.update_xaxes(type="log")
    figure.update_yaxes(tickformat=".0%", range=[0, 1.02])
    return Chart(
        f"{NAMES[metric]} ({metric.upper()})", _distribution_caption(metric, limits, [slo for slo in limits if slo not in drawn]), figure
    )


def _distribution_caption(metric: str, limits: list[Slo], far: list[Slo]) -> str:
    parts = ["Share of requests that are at least as fast."]
    if not limits:
        parts.append("No limit was asked for.")
    parts += [f"The limit of p{slo.percentile:g}, {duration(slo.limit_s)}, lies far to the right." for slo in far]
    if metric == "ttfvt":
        parts.append("Outputs that end while thinking have none.")
    return " ".join(parts)


def _neighbours(plan: Plan) -> Iterable[Candidate]:
    """At most five sizes around the answer: more curves cannot be told apart."""
    center = plan.num_replicas or max(plan.candidates)
    return [plan.candidates[num] for num in sorted(sorted(plan.candidates, key=lambda num: abs(num - center))[:5])]


def _curve(latency: Latency) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points of the estimated distribution function, censored requests taken into account."""
    times_s, surviving = kaplan_meier(latency.values_s, latency.observed)
    # Evenly in share, and all of the last percent: that is where the limits are.
    wanted = np.concatenate([np.linspace(0, 0.99, POINTS), np.linspace(0.99, 1, POINTS // 3)])
    rows = np.unique(np.minimum(np.searchsorted(1 - surviving, wanted), len(times_s) - 1))
    return times_s[rows], (1 - surviving)[rows]


def _spans_decades(latencies: list[Latency]) -> bool:
    low = min(float(np.quantile(latency.values_s, 0.05)) for latency in latencies)
    high = max(float(latency.values_s.max()) for latency in latencies)
    return low > 0 and high / low > 100


def _unit(seconds: Iterable[float]) -> tuple[float, str]:
    finite = [value for value in seconds if isfinite(value)]
    return (1000.0, "ms") if not finite or max(finite) < 1 else (1.0, "s")


# -- over time -------------------------------------------------------------------------------------------------------------


def _kv_usage(plan: Plan, shown: Candidate) -> Chart:
    trial = shown.trials[0]
    figure = axes("time (s)", "KV cache in use")
    time_s = np.round(trial.time_s, 2)
    least, most, mean = trial.kv_usage.min(1), trial.kv_usage.max(1), trial.kv_usage.mean(1)
    if trial.kv_usage.shape[1] > 1:
        figure.add_scatter(x=time_s, y=np.round(least, 4), mode="lines", line={"width": 0}, showlegend=False, hoverinfo="skip")
        figure.add_scatter(
            x=time_s,
            y=np.round(most, 4),
            mode="lines",
            line={"width": 0},
            fill="tonexty",
            fillcolor=BAND,
            name="least to most used replica",
            hoverinfo="skip",
        )
    figure.add_scatter(
        x=time_s,
        y=np.round(mean, 4),
        mode="lines",
        line={"color": ANSWER, "width": 2},
        name="mean",
        hovertemplate="%{x:.0f} s: %{y:.1%}<extra></extra>",
    )
    figure.update_yaxes(tickformat=".0%", range=[0, min(max(1.25 * float(most.max()), 0.05), 1.02)])
    _phases(figure, plan)
    return Chart(f"KV-cache use with {_count(plan, shown)}", "Share of each replica's KV blocks that is held, in the first run.", figure)


def _requests(plan: Plan, shown: Candidate) -> Chart:
    trial = shown.trials[0]
    figure = axes("time (s)", "requests, all replicas")
    time_s = np.round(trial.time_s, 2)
    for name, values, color in (("running", trial.running, ANSWER), ("waiting", trial.queue, FEWER)):
        figure.add_scatter(
            x=time_s,
            y=values,
            name=name,
            mode="lines",
            line={"color": color, "width": 2},
            hovertemplate="%{x:.0f} s: %{y:.0f}<extra>" + name + "</extra>",
        )
    figure.update_yaxes(rangemode="tozero")
    _phases(figure, plan)
    return Chart(f"Requests in the service with {_count(plan, shown)}", "Running: in the batch. Waiting: without a seat or blocks.", figure)


def _phases(figure: Any, plan: Plan) -> None:
    """Marks what is not measured."""
    if plan.period is None:
        return
    low_s, high_s = plan.period.window
    end_s = max(float(trace.x[-1]) for trace in figure.data if len(trace.x))
    shade = {"fillcolor": "#eef1f4", "layer": "below", "line_width": 0}
    label = {"annotation_position": "bottom left", "annotation_font_size": 11, "annotation_font_color": "#5b6875"}
    figure.add_vrect(x0=0, x1=low_s, **shade, **label, annotation_text="warm-up")
    if end_s > high_s:
        figure.add_vrect(x0=high_s, x1=end_s, **shade, **label, annotation_text="cool-down")


def _count(plan: Plan, candidate: Candidate) -> str:
    gpus = candidate.num_replicas * plan.question.gpus_per_replica
    return f"{gpus} GPU{'s' if gpus > 1 else ''}"
