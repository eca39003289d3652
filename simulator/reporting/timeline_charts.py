"""Figures of single runs over time, one line a run: how the KV pool fills, and how many requests are in the batch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from simulator.cluster import NS_PER_S
from simulator.reporting.charts import SERIES, Chart, axes
from simulator.simulate import Result

POINTS = 600
"""Of a line: more are not seen."""


def kv_usage(results: Mapping[str, Result]) -> Chart:
    """Share of the KV blocks that is held, of all replicas together."""
    lines = {name: result.timeline.kv_blocks.mean(1) / result.scenario.engine.usable_blocks for name, result in results.items()}
    chart = _over_time("KV-cache use", "KV blocks in use", "Share of the pool's blocks that requests hold.", results, lines)
    most = max(float(line.max(initial=0.0)) for line in lines.values())
    chart.figure.update_yaxes(tickformat=".0%" if most > 0.05 else ".1%")
    return chart


def running(results: Mapping[str, Result]) -> Chart:
    """Requests in the batch, of all replicas together."""
    lines = {name: result.timeline.running.sum(1).astype(np.float64) for name, result in results.items()}
    return _over_time("Requests in the batch", "running", "A batch behind a barrier empties before the next one comes.", results, lines)


def _over_time(title: str, y_title: str, caption: str, results: Mapping[str, Result], lines: Mapping[str, NDArray[np.float64]]) -> Chart:
    figure = axes("time (s)", y_title)
    for index, (name, values) in enumerate(lines.items()):
        rows = np.unique(np.linspace(0, len(values) - 1, POINTS).astype(int))
        figure.add_scatter(
            x=np.round(results[name].timeline.time_ns[rows] / NS_PER_S, 2), y=np.round(values[rows], 4), name=name, mode="lines",
            line={"color": SERIES[index % len(SERIES)], "width": 2, "shape": "hv"},
        )  # fmt: skip
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(showlegend=True)
    return Chart(title, caption, figure)
