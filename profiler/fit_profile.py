"""`python -m profiler.fit_profile profile=FOLDER`: a cost model from a profile.

Usage: python -m profiler.fit_profile profile=FOLDER [models=FOLDER]

  profile  what `python -m profiler` wrote: profile.json and steps.csv.gz
  models   where <gpu>/<model>/<weights>-kv_<dtype>-tp<n>.json is written (default: the models that this project ships), and
           <gpu>/aliases.json: the models of conf/model that share another one's shape, and so its cost model

Prints the errors of the fit. The same profile gives the same bytes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from profiler.export import export, write_text
from profiler.fit import MODES, Mode, StepTimeRegressor, feature_domain
from profiler.options import aliases
from profiler.profiled import Profiled, read_profile
from simulator.cost import Artifact, ErrorRow, Memory, Overheads, Provenance, Regime, StepFeatures
from simulator.errors import UserError
from simulator.models import MODELS

Float64 = NDArray[np.float64]

DECODING = (
    "decode_seqs",  # sampling, and a query's share of attention
    "decode_context_tokens",  # keys and values read
    "decode_context_tokens[:32768]",  # small totals do not fill the memory bus
    "decode_context_max_tokens",  # the longest sequence's attention is the last to end
)
PREFILLING = (
    "prefill_seqs",
    "prefill_attention_tokens",
    "prefill_context_tokens",
)
PADDED = (
    "padded_tokens",
    *(f"padded_tokens[{knot}:]" for knot in (16, 64, 128, 256, 512, 1024, 2048)),
    "padded_tokens[:4]",
    "padded_tokens[128:136]",
)
"""A matrix product is bound by its weights first, then by its rows: with rows, the slope grows; tiles make jumps."""

GPU_TERMS: Mapping[Mode, tuple[str, ...]] = {
    "full": ("one", *PADDED, *DECODING, "verify_tokens"),
    "piecewise": ("one", *PADDED, *DECODING, *PREFILLING, "verify_tokens"),
    "none": ("one", *PADDED, *DECODING, *PREFILLING, "verify_tokens"),
}
LAUNCH_TERMS: Mapping[Mode, tuple[str, ...]] = dict.fromkeys(MODES, ("one", "prefill_seqs", "decode_seqs", "tokens"))

FOLDS = 5


def fit_profile(folder: Path) -> tuple[Artifact, str]:
    """The cost model fitted to a profile, and a report of its errors.

    Raises:
        UserError: the profile is unreadable, or has no steps to fit.
    """
    profile = read_profile(folder)
    meta, engine = profile.meta, profile.meta["engine"]
    known = profile.take(profile.table["gpu_ns"].notna().to_numpy())
    regimes = _regimes(known, profile)
    artifact = Artifact(
        format_version=1,
        gpu=meta["gpu"],
        model=meta["model"],
        weights=meta["weights"],
        kv_cache_dtype=meta["kv_cache_dtype"],
        tensor_parallel_size=meta["tensor_parallel_size"],
        engine=f"{engine['name']} {engine['version']}",
        memory=Memory.model_validate({name: engine[name] for name in Memory.model_fields}),
        step=regimes,
        overheads=Overheads(schedule_ns=round(float(profile.table["cpu_ns"].median()))),
        domain=feature_domain(known.features(), [name for name in StepFeatures._fields if name != "graph_mode"]),
        error=_error_rows(known),
        provenance=Provenance(
            source=folder.name, sha256=profile.sha256, fitted_by="profiler.fit_profile", note=f"{meta['weight_values']} weights."
        ),
    )
    return artifact, _report(artifact, len(profile.table) - len(known.table))


def predictor(profile: Profiled, terms: Mapping[Mode, tuple[str, ...]], column: str) -> dict[Mode, StepTimeRegressor]:
    """A regression of `column` (nanoseconds) for each graph mode that was measured."""
    models: dict[Mode, StepTimeRegressor] = {}
    for name, mode in MODES.items():
        rows = profile.take((profile.table["graph_mode"] == int(mode)).to_numpy() & profile.table[column].notna().to_numpy())
        if len(rows.table):
            regressor = StepTimeRegressor(terms=terms[name], mode_terms={}, window=1)
            models[name] = regressor.fit(rows.matrix, rows.table[column].to_numpy(np.float64))
    return models


def predict(models: Mapping[Mode, StepTimeRegressor], profile: Profiled) -> Float64:
    """float64[k]: nanoseconds of each row; NaN where its graph mode was not fitted."""
    predicted = np.full(len(profile.table), np.nan)
    for name, model in models.items():
        rows = (profile.table["graph_mode"] == int(MODES[name])).to_numpy()
        if rows.any():
            predicted[rows] = model.predict(profile.matrix[rows])
    return predicted


def _regimes(known: Profiled, profile: Profiled) -> dict[Mode, Regime]:
    gpu = predictor(known, GPU_TERMS, "gpu_ns")
    # Without asynchronous scheduling, a launch ends with the wait for the GPU: its time says nothing of its own.
    launch = predictor(profile, LAUNCH_TERMS, "launch_ns") if profile.meta["engine"]["async_scheduling"] else {}
    if not gpu:
        raise UserError("profile: no step was seen without gaps on the GPU; measure more points")

    def coefficients(models: Mapping[Mode, StepTimeRegressor], mode: Mode) -> dict[str, float]:
        # A mode that this engine never runs (all but `none`, when eager) takes the coefficients of the one that it does.
        if not models:
            return {}
        model = models.get(mode) or next(iter(models.values()))
        return {term: float(f"{value:.6g}") for (_, term), value in zip(model.columns_, model.coef_, strict=True) if value > 0}

    return {mode: Regime(gpu_ns=coefficients(gpu, mode), launch_ns=coefficients(launch, mode)) for mode in MODES}


def _error_rows(known: Profiled) -> list[ErrorRow]:
    """In-sample, and with whole rows of the grid left out: a batch (or chunk) size, or a context, unknown to the fit."""
    rows = _errors(known, predict(predictor(known, GPU_TERMS, "gpu_ns"), known), "in-sample")
    table = known.table
    for name, values in (
        ("batch or chunk sizes", table["prefill_tokens"] + table["decode_seqs"]),
        ("contexts", (table["decode_context_max_tokens"] + table["prefill_context_tokens"]).round(-2)),
    ):
        rows += _errors(known, _left_out(known, values.to_numpy()), f"{name} left out")
    return rows


def _left_out(known: Profiled, group: NDArray[np.int64]) -> Float64:
    """Predictions of rows by fits that saw no row of their group; the extreme groups are always seen: nothing is extrapolated."""
    groups, index = np.unique(group, return_inverse=True)
    fold = np.where((index == 0) | (index == len(groups) - 1), -1, index % FOLDS)
    predicted = np.full(len(group), np.nan)
    for left_out in range(FOLDS):
        rows = fold == left_out
        if rows.any() and not rows.all():
            predicted[rows] = predict(predictor(known.take(~rows), GPU_TERMS, "gpu_ns"), known.take(rows))
    return predicted


def _errors(known: Profiled, predicted: Float64, judged_on: str) -> list[ErrorRow]:
    rows = []
    measured = known.table["gpu_ns"].to_numpy(np.float64)
    for kind in ("decode", "prefill", "mixed"):
        judged = (known.table["kind"] == kind).to_numpy() & np.isfinite(predicted)
        if judged.any():
            relative = predicted[judged] / measured[judged] - 1
            median, p90 = np.quantile(np.abs(relative), [0.5, 0.9])
            digits = [round(float(value), 5) for value in (median, p90, relative.mean())]
            named = dict(zip(("median_abs", "p90_abs", "signed_mean"), digits, strict=True))
            rows.append(ErrorRow(judged_on=f"{kind} steps, {judged_on}", n=int(judged.sum()), **named))
    return rows


def _report(artifact: Artifact, gaps: int) -> str:
    width = max(len(row.judged_on) for row in artifact.error)
    lines = [f"{'predicted / measured - 1':{width}}  {'n':>6} {'median':>7} {'p90':>7} {'mean':>7}"]
    lines += [f"{r.judged_on:{width}}  {r.n:6,} {r.median_abs:7.2%} {r.p90_abs:7.2%} {r.signed_mean:+7.2%}" for r in artifact.error]
    if gaps:
        lines.append(f"{gaps} rows left out: the GPU was never seen without gaps in them")
    for clock in ("gpu_ns", "launch_ns"):
        for mode, regime in artifact.step.items():
            lines.append(f"{mode}, {clock}: " + " + ".join(f"{value:,.6g} {term}" for term, value in getattr(regime, clock).items()))
    return "\n".join(lines)


def _arguments(argv: list[str]) -> tuple[Path, Path]:
    given = dict(argument.split("=", 1) for argument in argv if "=" in argument)
    if len(given) != len(argv) or "profile" not in given or set(given) - {"profile", "models"}:
        raise UserError(f"arguments {' '.join(argv) or '(none)'}: expected profile=FOLDER, and if you like models=FOLDER")
    return Path(given["profile"]), Path(given.get("models", MODELS))


def main(argv: list[str]) -> int:
    """The command; returns its exit status."""
    if argv in (["--help"], ["-h"]):
        sys.stdout.write(f"{__doc__}\n")
        return 0
    try:
        folder, models = _arguments(argv)
        artifact, report = fit_profile(folder)
        path = export(artifact, models)
        write_text(models / artifact.gpu / "aliases.json", json.dumps(aliases(), indent=1) + "\n")
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{report}\nwritten: {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
