"""`python -m profiler.fit_profile profile=FOLDER`: a cost model from a profile.

Usage: python -m profiler.fit_profile profile=FOLDER [after=FOLDER] [service=FOLDER] [models=FOLDER]

  profile  what `python -m profiler` wrote: profile.json and steps.csv.gz; or an artifact with its measurements beside it
  after    another profile, or artifact with its measurements: of this, the sampler and the product with the vocabulary, where the profile
           did not time them apart; of the same width, vocabulary, GPU and tensor parallel size
  service  calibrations: how much longer launches take in service, and a request's ways from and to the client (profiler/service.py;
           default: those that lie below models/ for this GPU, or that the artifact names, if there are any)
  models   where <gpu>/<model>/<weights>-kv_<dtype>-tp<n>[-<method>-k<K>].json is written, its measurements beside it (default: the
           models that this project ships), and <gpu>/aliases.json: the models of conf/model that share a measured one's shape

Prints the errors of the fit. The same measurements give the same bytes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from profiler.export import export
from profiler.exposure import time_shares
from profiler.files import write_text
from profiler.fit import MODES, Mode, StepTimeRegressor, feature_domain
from profiler.gpu_time import IN_STEP, fit_gpu_time
from profiler.idle import attention_of
from profiler.judge import error_rows, left_out, residuals
from profiler.launch_time import Launching, launch_regimes
from profiler.options import aliases
from profiler.profiled import Profiled, from_raw
from profiler.raw import Raw, after_of
from profiler.service import SERVICE, Service, read_service
from profiler.sharing import SHARING, read_sharing, shared_read
from profiler.sustained import OWN, sustained_ns, usual_share, whole_budget_ns
from simulator.artifacts.artifact import Artifact, Measurement, Memory, MemoryParts, Provenance, Regime
from simulator.artifacts.attention import Attention
from simulator.artifacts.models import MODELS, artifact_name
from simulator.cost import CostModel
from simulator.errors import UserError
from simulator.features import StepFeatures


def fit_profile(raw: Raw, service: Path | None = None, after: Raw | None = None, models: Path = MODELS) -> tuple[Artifact, str]:
    """The cost model fitted to a profile, and a report of its errors.

    Args:
        raw: the profile's measurements.
        service: the calibrations whose launches and ways from and to the client count; none: launches as profiled, no ways.
        after: the profile whose sampler and product with the vocabulary count, where `raw` did not time them apart.
        models: where the calibrated engines' profiles lie.

    Raises:
        UserError: the profile has no steps to fit, or a calibration is unreadable, or lies elsewhere.
    """
    if service is not None and not service.resolve().is_relative_to(models.resolve()):
        raise UserError(f"service {service}: must lie below models={models}, so that the artifact can name it")
    profile = from_raw(raw, after)
    meta, engine, known = profile.meta, profile.meta["engine"], profile.gpu_known
    if known.table.empty:
        raise UserError("profile: no step was seen without gaps on the GPU; measure more points")
    model = fit_gpu_time(known)
    predicted = model.predict(known.matrix)
    unseen = left_out(known)
    predictions = {"in-sample": predicted, **unseen}
    in_service = Service() if service is None else read_service(service, models)
    sharing = [] if meta["gpu"] == "cpu" else read_sharing(models / str(meta["gpu"]) / SHARING)
    speculative = meta.get("speculative")
    longer_ns = sustained_ns(raw, after, model)
    artifact = Artifact(
        format_version=1,
        gpu=meta["gpu"],
        model=meta["model"],
        weights=meta["weights"],
        kv_cache_dtype=meta["kv_cache_dtype"],
        tensor_parallel_size=meta["tensor_parallel_size"],
        engine=f"{engine['name']} {engine['version']}",
        memory=_memory(meta),
        attention=_attention(meta, sharing),
        step=_regimes(model, profile, in_service),
        sampling=profile.sampling.regimes() if profile.sampling else {},
        sustained_ns=float(f"{longer_ns or 0.0:.6g}"),
        overheads=in_service.overheads,
        domain=feature_domain(known.features(), [name for name in StepFeatures._fields if name not in ("graph_mode", IN_STEP)]),
        error=error_rows(known, predictions),
        residuals=residuals(known, predicted),
        measurement=_measurement(meta),
        speculation=speculative and f"{speculative['method']}-k{speculative['num_speculative_tokens']}",
        provenance=Provenance(
            source=f"profile of {meta.get('written', 'unknown time')}",
            sha256=profile.sha256,
            fitted_by="profiler.fit_profile",
            note=_weights_note(profile),
            service="" if service is None else service.resolve().relative_to(models.resolve()).as_posix(),
            after="" if after is None else _artifact(after.meta),
            sustained="" if longer_ns is None else OWN,
            sharing=" ".join(raw.sha256 for raw in sharing),
        ),
    )
    if longer_ns is None:
        artifact = _as_usual(artifact, models)
    # Traffic decodes: where that was not measured, it says nothing of the grid.
    if not speculative and (known.table["kind"] == "decode").any():
        shares = time_shares(artifact, known)
        artifact = artifact.model_copy(update={"error": [*artifact.error, *error_rows(known, unseen, shares)]})
    return artifact, _report(artifact, len(profile.table) - len(known.table))


def _as_usual(artifact: Artifact, models: Path) -> Artifact:
    """With the usual `sustained_ns` of its GPU, of which its own profile tells nothing."""
    share, count = usual_share(models, artifact.gpu)
    if not count:
        return artifact
    provenance = artifact.provenance.model_copy(update={"sustained": f"the median of {count} profiles of this GPU"})
    return artifact.model_copy(update={"sustained_ns": float(f"{share * whole_budget_ns(artifact):.6g}"), "provenance": provenance})


def _attention(meta: Mapping[str, Any], sharing: list[Raw]) -> Attention | None:
    attention = attention_of(meta)
    return attention.model_copy(update={"shared_read": shared_read(sharing)}) if attention and sharing else attention


def _weights_note(profile: Profiled) -> str:
    # The sampler's time depends on the logits, and those of dummy or random weights are no real model's.
    weights = profile.meta["weight_values"].capitalize()
    return f"{weights} weights, {'with logits as a trained model has them' if profile.sampling else 'and the logits that they give'}."


def _artifact(meta: Mapping[str, Any]) -> str:
    """Where the cost model of a profile lies below `models/`."""
    name = artifact_name(meta["weights"], meta["kv_cache_dtype"], meta["tensor_parallel_size"])
    return f"{meta['gpu']}/{meta['model']}/{name}"


def service_of(profile: Path, raw: Raw, models: Path) -> Path | None:
    """The calibrations that a shipped artifact names, or else those of the profile's GPU, if there are any."""
    if profile.suffix == ".json":
        named = CostModel.load(profile).artifact.provenance.service
        return models / named if named else None
    own = models / str(raw.meta["gpu"]) / SERVICE
    return own if own.is_dir() else None


def _regimes(model: StepTimeRegressor, profile: Profiled, in_service: Service) -> dict[Mode, Regime]:
    gpu = model.regimes()
    served = in_service.launches_of(profile)
    launches = launch_regimes(profile, served.ratio)
    # A mode that this engine never runs (all but `none`, when eager) takes the launches of one that it does.
    some = next(iter(launches.values()), Launching({}, {}, {}))
    regimes = {}
    for mode in MODES:
        launching = {f"{name}_ns": _rounded(coefficients) for name, coefficients in launches.get(mode, some)._asdict().items()}
        regimes[mode] = Regime(gpu_ns=gpu[mode].gpu_ns, **launching, launch_spread=served.spread.get(mode, []))
    return regimes


def _rounded(coefficients: Mapping[str, float]) -> dict[str, float]:
    return {term: float(f"{value:.6g}") for term, value in coefficients.items() if value > 0}


def _memory(meta: Mapping[str, Any]) -> Memory:
    engine, account = meta["engine"], meta.get("memory") or {}
    names = [name for name in MemoryParts.model_fields if name != "activation_peaks"]
    known = all(account.get(name) is not None for name in names)
    parts = MemoryParts.model_validate({name: account[name] for name in (*names, "activation_peaks")}) if known else None
    return Memory.model_validate({name: engine[name] for name in Memory.model_fields if name != "parts"} | {"parts": parts})


def _measurement(meta: Mapping[str, Any]) -> Measurement | None:
    """None for a machine without sensors."""
    machine, points = meta.get("machine") or {}, meta.get("points") or []
    columns = {name: [point[name] for point in points if point.get(name) is not None] for name in _SENSORS}
    if "device" not in machine or not all(columns.values()):
        return None
    spreads = {name: tuple(round(float(q), 1) for q in np.quantile(readings, [0, 0.5, 1])) for name, readings in columns.items()}
    took_s = meta["engine_start_s"] + sum(point["took_s"] for point in points)
    return Measurement.model_validate(
        spreads
        | {
            "device": machine["device"],
            "driver": machine["driver"],
            "power_limit_w": machine["power_limit_w"],
            "gpu_minutes": round(took_s * meta["num_gpus"] / 60, 2),
            "points": meta["points_measured"],
            "points_in_grid": meta["points_in_grid"],
            "weight_values": meta["weight_values"],
        }
    )


_SENSORS = ("sm_clock_mhz", "power_w", "temperature_c")


def _report(artifact: Artifact, gaps: int) -> str:
    width = max(len(row.judged_on) for row in artifact.error)
    lines = [f"{'predicted / measured - 1':{width}}  {'n':>6} {'median':>7} {'p90':>7} {'mean':>7}"]
    lines += [f"{r.judged_on:{width}}  {r.n:6,} {r.median_abs:7.2%} {r.p90_abs:7.2%} {r.signed_mean:+7.2%}" for r in artifact.error]
    if gaps:
        lines.append(f"{gaps} rows left out: the GPU was never seen without gaps in them")
    for clock in ("launch_ns", "lead_ns", "hand_over_ns"):
        for mode, regime in artifact.step.items():
            if coefficients := getattr(regime, clock):
                lines.append(f"{mode}, {clock}: " + " + ".join(f"{value:,.6g} {term}" for term, value in coefficients.items()))
    ways = artifact.overheads
    lines.append(
        f"from the client {ways.ingress_ns / 1e6:.2f} ms, to the client {ways.egress_ns / 1e6:.2f} ms"
        f" and {ways.egress_per_seq_ns / 1e3:.0f} µs for each sequence of the step"
    )
    return "\n".join(lines)


def _arguments(argv: list[str]) -> dict[str, Path]:
    given = dict(argument.split("=", 1) for argument in argv if "=" in argument)
    if len(given) != len(argv) or "profile" not in given or set(given) - {"profile", "after", "service", "models"}:
        known = "expected profile=FOLDER, and if you like after=FOLDER, service=FOLDER and models=FOLDER"
        raise UserError(f"arguments {' '.join(argv) or '(none)'}: {known}")
    return {name: Path(text) for name, text in given.items()}


def main(argv: list[str]) -> int:
    """The command; returns its exit status."""
    if argv in (["--help"], ["-h"]):
        sys.stdout.write(f"{__doc__}\n")
        return 0
    try:
        given = _arguments(argv)
        raw, models = Raw.read(given["profile"]), given.get("models", MODELS)
        after = Raw.read(given["after"]) if "after" in given else after_of(given["profile"]) if given["profile"].suffix == ".json" else None
        artifact, report = fit_profile(raw, given.get("service") or service_of(given["profile"], raw, models), after, models)
        path = export(artifact, models)
        raw.write(path)
        measured = {name: owner for name, owner in aliases().items() if (models / artifact.gpu / owner).is_dir()}
        write_text(models / artifact.gpu / "aliases.json", json.dumps(measured, indent=1) + "\n")
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{report}\nwritten: {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
