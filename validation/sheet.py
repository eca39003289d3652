"""A trace on one sheet: measured against simulated, as distributions over requests and as courses over time (Plotly)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simulator.reporting.charts import ANSWER, FEWER, GRID, INK
from simulator.workload.base import NS_PER_S
from validation.compare import Comparison
from validation.measured import at_times

if TYPE_CHECKING:
    import plotly.graph_objects as go

Float64 = NDArray[np.float64]

POINTS = 300
"""Of a curve: more are not seen."""
DISTRIBUTIONS = (
    ("e2e_s", "E2E, s", 1.0),
    ("tpot_s", "TPOT, ms", 1e3),
    ("ttft_s", "TTFT, ms", 1e3),
    ("itl_p99_s", "ITL p99 of a request, ms", 1e3),
)
COURSES = (("running", "running requests"), ("waiting", "waiting requests"), ("kv_usage", "KV blocks in use, %"))
MEASURED, SIMULATED = {"color": INK, "width": 2.5}, {"color": FEWER, "width": 1.5}
WORST = "#c2352b"


def sheet(comparison: Comparison) -> go.Figure:
    """Distributions above; below, courses over time (where the trace has steps), and each request's error against its arrival."""
    from plotly.subplots import make_subplots

    alone = " (not recorded: simulated only)" if comparison.steps is None else ""
    courses = [f"{title}{alone}" for _, title in COURSES]
    titles = [*(title for _, title, _ in DISTRIBUTIONS), *courses, "E2E error of each request, %"]
    figure = make_subplots(rows=2, cols=4, subplot_titles=titles, vertical_spacing=0.17, horizontal_spacing=0.045)
    for column, (name, _, scale) in enumerate(DISTRIBUTIONS, start=1):
        if name in comparison.measured:
            for values, label, line in (
                (comparison.measured[name], "measured", MEASURED),
                (comparison.simulated[name], "simulated", SIMULATED),
            ):
                x, y = _cdf(values * scale)
                _line(figure, x, y, label, line, row=1, col=column, legend=column == 1)
    _courses(figure, comparison)
    requests = comparison.replay.result.requests
    error = 100 * (comparison.simulated["e2e_s"] / comparison.measured["e2e_s"] - 1)
    markers = {"size": 4, "color": ANSWER, "opacity": 0.6}
    figure.add_scatter(x=requests.arrival_ns / NS_PER_S, y=error, mode="markers", marker=markers, showlegend=False, row=2, col=4)
    return _styled(figure)


def _courses(figure: Any, comparison: Comparison) -> None:
    timeline, engine = comparison.replay.until_cut.timeline, comparison.replay.result.scenario.engine
    time_s = timeline.time_ns / NS_PER_S
    shown = slice(None, None, max(len(time_s) // POINTS, 1))
    simulated = {
        "running": timeline.running.sum(axis=1),
        "waiting": timeline.waiting.sum(axis=1),
        "kv_usage": 100 * timeline.kv_blocks.mean(axis=1) / engine.usable_blocks,
    }
    for column, (name, _) in enumerate(COURSES, start=1):
        if comparison.steps is not None:
            values = at_times(comparison.steps, name, time_s[shown])
            measured = 100 * values.mean(axis=1) if name == "kv_usage" else values.sum(axis=1)
            _line(figure, time_s[shown], measured, "measured", MEASURED, row=2, col=column, legend=False)
        _line(figure, time_s[shown], simulated[name][shown], "simulated", SIMULATED, row=2, col=column, legend=False)


def _cdf(values: Float64) -> tuple[Float64, Float64]:
    """Points of the distribution function, the tail as fine as the middle: 99 % is where it matters."""
    values = values[np.isfinite(values)]
    share = np.concatenate([np.linspace(0, 0.9, POINTS // 2, endpoint=False), 1 - np.geomspace(0.1, 1e-3, POINTS // 2)])
    return np.quantile(values, share), share


def _line(figure: Any, x: Any, y: Any, name: str, line: dict[str, Any], *, row: int, col: int, legend: bool) -> None:
    figure.add_scatter(
        x=np.round(x, 4), y=np.round(y, 4), name=name, legendgroup=name, line=line, mode="lines", showlegend=legend, row=row, col=col
    )


def _styled(figure: Any) -> Any:
    figure.update_layout(
        template="none",
        font={"family": "system-ui, sans-serif", "size": 12, "color": INK},
        margin={"l": 44, "r": 12, "t": 64, "b": 40},
        height=560,
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
        legend={"orientation": "h", "y": 1.09, "yanchor": "bottom", "x": 0},
    )
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": "#9aa5b1", "ticks": "outside", "tickcolor": "#9aa5b1"}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis, rangemode="tozero")
    figure.update_yaxes(zeroline=True, zerolinecolor=WORST, rangemode="normal", row=2, col=4)
    figure.update_yaxes(range=[0, 1], row=1)
    for column in range(1, 5):
        figure.update_xaxes(title={"text": "s", "font": {"size": 11}, "standoff": 2}, row=2, col=column)
    figure.update_annotations(font={"size": 13})
    return figure
