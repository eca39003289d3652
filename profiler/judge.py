"""How well a fit predicts a profile: in-sample, with whole rows of the grid left out, by their weight in traffic, and step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from profiler.gpu_time import fit_gpu_time
from profiler.profiled import Profiled
from profiler.readme import IN_TRAFFIC
from simulator.artifacts.artifact import ErrorRow

Float64 = NDArray[np.float64]

Kind = Literal["decode", "prefill", "mixed"]
KINDS: tuple[Kind, ...] = ("decode", "prefill", "mixed")

FOLDS = 5
QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)


def left_out(known: Profiled) -> dict[str, Float64]:
    """Predictions, float64[k], by fits that saw no row with its batch (or chunk) size, or none with its context; NaN: always seen."""
    table = known.table
    groups = {
        "batch or chunk sizes": table["prefill_tokens"] + table["decode_seqs"],
        "contexts": (table["decode_context_max_tokens"] + table["prefill_context_tokens"]).round(-2),
    }
    return {f"{name} left out": _left_out(known, values.to_numpy(np.int64)) for name, values in groups.items()}


def error_rows(known: Profiled, predictions: Mapping[str, Float64], shares: Float64 | None = None) -> list[ErrorRow]:
    """Errors of whole steps, sampler included, by kind of step.

    Args:
        known: rows with a GPU time.
        predictions: float64[k], by what they are judged on.
        shares: float64[k], of the time that traffic spends in steps like each row: the errors are weighted with them, and there are
            rows for all steps together; without them, all rows of the grid count the same.
    """
    found = []
    measured = (known.table["gpu_ns"] + known.table["sample_ns"]).to_numpy(np.float64)
    kinds = [("all" if shares is not None else "", np.ones(len(measured), np.bool_))]
    kinds += [(kind, (known.table["kind"] == kind).to_numpy()) for kind in KINDS]
    for judged_on, predicted in predictions.items():
        for kind, its in kinds:
            judged = its & np.isfinite(predicted) & (True if shares is None else shares > 0)
            if kind and judged.any():
                relative = (predicted + known.sample_ns)[judged] / measured[judged] - 1
                weights = np.ones(len(relative)) if shares is None else shares[judged]
                name = f"{kind} steps, {judged_on}{'' if shares is None else IN_TRAFFIC}"
                found.append(_error_row(name, relative, weights / weights.sum()))
    return found


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


def _error_row(judged_on: str, relative: Float64, weights: Float64) -> ErrorRow:
    at = np.abs(relative)
    order = np.argsort(at, kind="stable")
    # The middle of each row's weight; with equal weights, numpy's own quantiles.
    upto = np.cumsum(weights[order]) - weights[order] / 2
    span = (upto - upto[0]) / (upto[-1] - upto[0]) if len(upto) > 1 else np.zeros(1)
    median, p90 = np.interp([0.5, 0.9], span, at[order])
    errors = {"median_abs": _digits(median), "p90_abs": _digits(p90), "signed_mean": _digits(float(relative @ weights))}
    return ErrorRow(judged_on=judged_on, n=len(relative), **errors)


def _digits(share: float) -> float:
    return round(float(share), 5)
