"""One picture per model: decode steps, prefills, tokens per second and the KV pool, every optimization beside bf16 (Plotly)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd

from profiler.effect import Measured, Ratio, Setting
from simulator.reporting.charts import GRID, INK, LIMIT, SERIES

if TYPE_CHECKING:
    import plotly.graph_objects as go

WIDTH, HEIGHT = 1000, 960
"""Pixels."""
DASHES = {1: "solid", 2: "dash", 4: "dashdot", 8: "longdash"}
"""Of a line, by GPUs of a replica."""
BEYOND = 0.35
"""Opacity where the pool no longer holds the batch."""
LABEL_APART = 2.0
"""Least ratio of two sizes whose labels do not run into each other."""
DECODE, DECODE_RATIO, PREFILL, PREFILL_RATIO, TOKENS, POOL = ((row, column) for row in (1, 2, 3) for column in (1, 2))

Place = tuple[int, int]


def figure(measured: Measured) -> go.Figure:
    """Six panels; the same colour is the same weights and KV cache, the same dash the same number of GPUs."""
    drawn = _panels(measured)
    colors = _colors(measured)
    for setting in measured.settings:
        _times(drawn, setting, colors[setting.weights])
    for effect in measured.effects:
        for place, ratio in ((DECODE_RATIO, effect.decode), (PREFILL_RATIO, effect.prefill)):
            _ratio(drawn, place, ratio, effect.setting, colors[effect.setting.weights])
    for place, ratios in (
        (DECODE_RATIO, [each.decode for each in measured.effects]),
        (PREFILL_RATIO, [each.prefill for each in measured.effects]),
    ):
        _slower(drawn, place, ratios)
    _pools(drawn, measured, colors)
    return drawn


def _colors(measured: Measured) -> dict[str, str]:
    """By weights and KV cache; those that the others are compared with as ink."""
    others = [name for name in dict.fromkeys(setting.weights for setting in measured.settings) if name != measured.plain]
    return {measured.plain: INK} | {name: SERIES[i % len(SERIES)] for i, name in enumerate(others)}


def _panels(measured: Measured) -> go.Figure:
    from plotly.subplots import make_subplots

    context, compared = f"{measured.settings[0].context:,} tokens of context", f"… over {measured.plain}'s: above 1 it is slower"
    titles = (
        f"Decode step, GPU time · {context}", compared,
        "Prefill of one prompt, GPU time", compared,
        f"Output tokens/s/GPU · {context}", "KV pool of a replica",
    )  # fmt: skip
    drawn = make_subplots(rows=3, cols=2, subplot_titles=titles, vertical_spacing=0.09, horizontal_spacing=0.09)
    drawn.update_layout(
        template="none", font={"family": "system-ui, sans-serif", "size": 12, "color": INK}, height=HEIGHT, bargap=0.35,
        margin={"l": 60, "r": 16, "t": 84, "b": 44}, paper_bgcolor="#ffffff", plot_bgcolor="#ffffff",
        legend={"orientation": "h", "y": 1.045, "yanchor": "bottom", "x": 0},
    )  # fmt: skip
    drawn.update_annotations(font={"size": 14})
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": "#9aa5b1", "ticks": "outside", "tickcolor": "#9aa5b1"}
    drawn.update_xaxes(**axis)
    drawn.update_yaxes(**axis)
    for places, x_title in (((DECODE, DECODE_RATIO, TOKENS), "sequences decoding"), ((PREFILL, PREFILL_RATIO), "tokens of the prompt")):
        for row, column in places:
            drawn.update_xaxes(type="log", dtick="D2", title={"text": x_title, "standoff": 4}, row=row, col=column)
    for row, column in (DECODE, PREFILL):
        drawn.update_yaxes(type="log", dtick="D2", title={"text": "ms", "standoff": 4}, row=row, col=column)
    drawn.update_yaxes(rangemode="tozero", row=TOKENS[0], col=TOKENS[1])
    return drawn


def _times(drawn: Any, setting: Setting, color: str) -> None:
    batches = sorted({*setting.batches, setting.seats})
    _curve(drawn, DECODE, setting, color, batches, lambda size: setting.decode_s(size) * 1e3, legend=True)
    _points(drawn, DECODE, setting.name, color, setting.measured_decode_s * 1e3)
    _curve(drawn, PREFILL, setting, color, setting.chunks, lambda size: setting.prefill_s(size) * 1e3, within=setting.chunks[-1])
    _points(drawn, PREFILL, setting.name, color, setting.measured_prefill_s * 1e3)
    inside = [batch for batch in batches if batch <= setting.seats]
    _curve(drawn, TOKENS, setting, color, inside, setting.tokens_per_gpu_s)
    end = {"symbol": "x", "size": 8, "color": color}
    drawn.add_scatter(
        x=[setting.seats], y=[setting.tokens_per_gpu_s(setting.seats)], mode="markers", marker=end, showlegend=False,
        hovertemplate=f"%{{x:,}} sequences fill the pool, or all seats<extra>{setting.name}</extra>", row=TOKENS[0], col=TOKENS[1],
    )  # fmt: skip


def _ratio(drawn: Any, place: Place, ratio: Ratio, setting: Setting, color: str) -> None:
    values = dict(zip(ratio.sizes, ratio.times.tolist(), strict=True))
    _curve(drawn, place, setting, color, ratio.sizes, values.__getitem__, within=ratio.within)
    _points(drawn, place, setting.name, color, ratio.measured)


def _slower(drawn: Any, place: Place, ratios: list[Ratio]) -> None:
    """The field above 1, and the sizes from which on something is slower."""
    row, column = place
    top = max([1.05, *(float(ratio.times.max()) for ratio in ratios)]) * 1.04
    drawn.add_hrect(y0=1, y1=top, fillcolor=LIMIT, opacity=0.06, line_width=0, row=row, col=column)
    drawn.add_hline(y=1, line={"color": LIMIT, "width": 1.5, "dash": "dash"}, row=row, col=column)
    firsts = sorted({first for ratio in ratios for first, _, _ in ratio.slower if first != ratio.sizes[0]})
    drawn.add_scatter(
        x=firsts, y=[1] * len(firsts), mode="markers+text", text=_labels(firsts), textposition="bottom center",
        textfont={"size": 11, "color": LIMIT}, marker={"symbol": "triangle-up", "size": 8, "color": LIMIT}, showlegend=False,
        hovertemplate="slower from %{x:,} on<extra></extra>", row=row, col=column,
    )  # fmt: skip


def _labels(sizes: list[int]) -> list[str]:
    """What to write below each of `sizes`, rising: nothing where it would run into the one before."""
    labels, last = [], 0
    for size in sizes:
        labels.append(f"{size:,}" if size > LABEL_APART * last else "")
        last = size if labels[-1] else last
    return labels


def _curve(
    drawn: Any, place: Place, setting: Setting, color: str, sizes: list[int], of: Callable[[int], float], *, within: int | None = None,
    legend: bool = False,
) -> None:  # fmt: skip
    """A line, fainter beyond the sizes that fit (`within`; without it: the batches that the pool holds)."""
    within = setting.seats if within is None else within
    inside, beyond = [size for size in sizes if size <= within], [size for size in sizes if size >= within]
    for part, opacity in ((inside, 1.0), (beyond, BEYOND)):
        if not part or (opacity < 1 and len(part) < 2):
            continue
        drawn.add_scatter(
            x=part, y=[of(size) for size in part], mode="lines", line={"color": color, "width": 2, "dash": DASHES.get(setting.tp, "dot")},
            opacity=opacity, name=setting.name, legendgroup=setting.name, showlegend=legend and opacity == 1.0,
            hovertemplate="%{x:,}: %{y:.3g}<extra>" + setting.name + "</extra>", row=place[0], col=place[1],
        )  # fmt: skip


def _points(drawn: Any, place: Place, name: str, color: str, measured: pd.Series[float]) -> None:
    drawn.add_scatter(
        x=measured.index, y=measured, mode="markers", marker={"color": color, "size": 5, "opacity": 0.7}, legendgroup=name,
        showlegend=False,
        hovertemplate="measured, %{x:,}: %{y:.3g}<extra>" + name + "</extra>", row=place[0], col=place[1],
    )  # fmt: skip


def _pools(drawn: Any, measured: Measured, colors: dict[str, str]) -> None:
    settings = measured.settings[::-1]
    drawn.add_bar(
        x=[setting.pool_tokens for setting in settings], y=[setting.name for setting in settings], orientation="h", showlegend=False,
        marker={"color": [colors[setting.weights] for setting in settings]}, text=[f"{setting.pool_tokens:,}" for setting in settings],
        textposition="auto", hovertemplate="%{x:,} tokens<extra>%{y}</extra>", row=POOL[0], col=POOL[1],
    )  # fmt: skip
    drawn.update_xaxes(title={"text": "tokens", "standoff": 4}, row=POOL[0], col=POOL[1])
    drawn.update_yaxes(automargin=True, row=POOL[0], col=POOL[1])
