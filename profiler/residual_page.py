"""`python -m profiler.residual_page profile=FOLDER`: what the fit of a profile misses, and where.

Usage: python -m profiler.residual_page profile=FOLDER [out=FILE]

  profile  what `python -m profiler` wrote, or an artifact (….json) with its measurements beside it
  out      the page (default: residuals.html)

An HTML file that needs nothing else: predicted / measured − 1 of every row of the grid, decode, prefill and mixed steps, against their
batch, chunk and context; in-sample, and as fits predict them that saw no row of their size, or none of their context.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from profiler.files import write_text
from profiler.gpu_time import fit_gpu_time
from profiler.judge import KINDS, Kind, error_rows, left_out
from profiler.profiled import Profiled, from_raw
from profiler.raw import Raw, after_of
from simulator.artifacts.artifact import ErrorRow
from simulator.errors import UserError
from simulator.reporting.charts import SERIES, Chart, axes
from simulator.reporting.page import document, section

Float64 = NDArray[np.float64]

AXES: Mapping[Kind, Mapping[str, str]] = {
    "decode": {"sequences": "decode_seqs", "mean context, tokens": "context", "longest context, tokens": "decode_context_max_tokens"},
    "prefill": {"chunk, tokens": "prefill_tokens", "tokens before the chunk": "start", "prompts in the step": "prefill_seqs"},
    "mixed": {"tokens of the batch": "padded_tokens", "chunk, tokens": "prefill_tokens", "mean context of what decodes, tokens": "context"},
}
SHOWN = 0.15
"""Axes end here; what lies beyond is drawn at the edge."""


def page(profile: Profiled) -> str:
    """The HTML text, from the rows of a profile.

    Raises:
        UserError: none of them has a GPU time.
    """
    known = profile.gpu_known
    if known.table.empty:
        raise UserError("profile: no step was seen without gaps on the GPU; measure more points")
    predictions = {"in-sample": fit_gpu_time(known).predict(known.matrix), **left_out(known)}
    rows, meta = error_rows(known, predictions), profile.meta
    name = f"{meta['model']} {meta['weights']}, KV {meta['kv_cache_dtype']}, TP {meta['tensor_parallel_size']} on {meta['gpu']}"
    return document(
        title=f"Residuals: {name}",
        eyebrow="What the fit misses",
        headline=f"Left out, steps of {name} are predicted within {_worst_median(rows):.1%} in the middle",
        facts=[("profile", f"{len(known.table)} rows of the grid, measured {meta.get('written', 'at an unknown time')}")],
        table=section("Errors, predicted / measured − 1", [_HEAD, *(_cells(row) for row in rows)], [False] * len(rows)),
        drawn=[_chart(kind, axis, column, known, predictions) for kind in KINDS for axis, column in AXES[kind].items()],
    )


_HEAD = ["judged on", "rows", "median", "90th percentile", "mean"]


def _cells(row: ErrorRow) -> list[str]:
    return [row.judged_on, f"{row.n:,}", f"{row.median_abs:.2%}", f"{row.p90_abs:.2%}", f"{row.signed_mean:+.2%}"]


def _worst_median(rows: list[ErrorRow]) -> float:
    return max((row.median_abs for row in rows if row.judged_on.endswith("left out")), default=float("nan"))


def _chart(kind: Kind, axis: str, column: str, known: Profiled, predictions: Mapping[str, Float64]) -> Chart:
    table = _with_places(known.table)
    its = (table["kind"] == kind).to_numpy()
    measured = (table["gpu_ns"] + table["sample_ns"]).to_numpy(np.float64)
    figure = axes(axis, "predicted / measured − 1")
    figure.add_hline(y=0.0, line={"color": "#9aa5b1", "width": 1})
    # What was left out lies over what was not: it is what counts.
    for (name, predicted), color, symbol in zip(predictions.items(), ("#9aa5b1", *SERIES), ("circle", "x", "diamond-open"), strict=False):
        off = (predicted + known.sample_ns) / measured - 1
        seen = its & np.isfinite(off)
        figure.add_scatter(
            x=np.maximum(table[column][seen], 1), y=np.clip(off[seen], -SHOWN, SHOWN), name=name, mode="markers",
            marker={"size": 6, "color": color, "symbol": symbol}, text=table["point"][seen], customdata=off[seen],
            hovertemplate="%{text}: %{customdata:+.2%}<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.update_xaxes(type="log")
    figure.update_yaxes(tickformat="+.0%", range=[-1.05 * SHOWN, 1.05 * SHOWN])
    figure.update_layout(showlegend=True)
    caption = f"{its.sum():,} rows; errors beyond ±{SHOWN:.0%} at the edge."
    return Chart(f"{kind.capitalize()}: by {axis.split(',', maxsplit=1)[0]}", caption, figure)


def _with_places(table: pd.DataFrame) -> pd.DataFrame:
    """With the columns by which the grid is looked at."""
    context = table["decode_context_tokens"] / table["decode_seqs"].clip(lower=1)
    return table.assign(context=context, start=table["prefill_context_tokens"] - table["prefill_tokens"])


def _arguments(argv: list[str]) -> tuple[Path, Path]:
    given = dict(argument.split("=", 1) for argument in argv if "=" in argument)
    if len(given) != len(argv) or "profile" not in given or set(given) - {"profile", "out"}:
        raise UserError(f"arguments {' '.join(argv) or '(none)'}: expected profile=FOLDER, and if you like out=FILE")
    return Path(given["profile"]), Path(given.get("out", "residuals.html"))


def main(argv: list[str]) -> int:
    """The command; returns its exit status."""
    if argv in (["--help"], ["-h"]):
        sys.stdout.write(f"{__doc__}\n")
        return 0
    try:
        path, out = _arguments(argv)
        write_text(out, page(from_raw(Raw.read(path), after_of(path) if path.suffix == ".json" else None)))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"written: {out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
