"""How well a fit predicts a profile: in-sample, with whole rows of the grid left out, and step by step."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from profiler.gpu_time import fit_gpu_time
from profiler.profiled import Profiled
from simulator.artifacts.artifact import ErrorRow

Float64 = NDArray[np.float64]

Kind = Literal["decode", "prefill", "mixed"]
KINDS: tuple[Kind, ...] = ("decode", "prefill", "mixed")

FOLDS = 5
QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)


def error_rows(known: Profiled, predicted: Float64) -> list[ErrorRow]:
    """In-sample, and with whole rows of the grid left out: a batch (or chunk) size, or a context, unknown to the fit.

    Args:
        known: rows with a GPU time.
        predicted: float64[k], the fit to all of them.
    """
    table = known.table
    groups = {
        "batch or chunk sizes": table["prefill_tokens"] + table["decode_seqs"],
        "contexts": (table["decode_context_max_tokens"] + table["prefill_context_tokens"]).round(-2),
    }
    rows = _errors(known, predicted, "in-sample")
    for name, values in groups.items():
        rows += _errors(known, _left_out(known, values.to_numpy(np.int64)), f"{name} left out")
    return rows


def residuals(known: Profiled, predicted: Float64) -> dict[Kind, dict[str, float]]:
    """Quantiles of measured / predicted − 1 of the single steps behind the rows of `known`."""
    sample_ns = known.table["sample_ns"]
    single = [
        (np.array(times_ns, np.float64) + sampled) / (expected + sampled) - 1
        for times_ns, expected, sampled in zip(known.table["single_gpu_ns"], predicted, sample_ns, strict=True)
    ]
    found: dict[Kind, dict[str, float]] = {}
    for kind in KINDS:
        of_kind = [errors for errors, its in zip(single, known.table["kind"], strict=True) if its == kind]
        if of_kind:
            at = np.quantile(np.concatenate(of_kind), QUANTILES)
            found[kind] = {f"{quantile:g}": _digits(value) for quantile, value in zip(QUANTILES, at, strict=True)}
    return found


def _left_out(known: Profiled, group: NDArray[np.int64]) -> Float64:
    """Predictions of rows by fits that saw no row of their group; the extreme groups are always seen: nothing is extrapolated."""
    groups, index = np.unique(group, return_inverse=True)
    fold = np.where((index == 0) | (index == len(groups) - 1), -1, index % FOLDS)
    predicted = np.full(len(group), np.nan)
    for left_out in range(FOLDS):
        rows = fold == left_out
        if rows.any():
            predicted[rows] = fit_gpu_time(known.take(~rows)).predict(known.matrix[rows])
    return predicted


def _errors(known: Profiled, predicted: Float64, judged_on: str) -> list[ErrorRow]:
    """Of whole steps, sampler included."""
    rows = []
    measured = (known.table["gpu_ns"] + known.table["sample_ns"]).to_numpy(np.float64)
    predicted = predicted + known.sample_ns
    for kind in KINDS:
        judged = (known.table["kind"] == kind).to_numpy() & np.isfinite(predicted)
        if judged.any():
            relative = predicted[judged] / measured[judged] - 1
            median, p90 = np.quantile(np.abs(relative), [0.5, 0.9])
            errors = {"median_abs": _digits(median), "p90_abs": _digits(p90), "signed_mean": _digits(relative.mean())}
            rows.append(ErrorRow(judged_on=f"{kind} steps, {judged_on}", n=int(judged.sum()), **errors))
    return rows


def _digits(share: float) -> float:
    return round(float(share), 5)
