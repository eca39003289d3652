"""`python -m profiler.fit_trace trace=FOLDER`: a cost model from a measured trace.

Usage: python -m profiler.fit_trace trace=FOLDER [models=FOLDER]

  trace   a measured trace with step records: meta.json, requests.csv.gz, steps.csv.gz
  models  where <gpu>/<model>/<weights>-kv_<dtype>-tp<n>.json is written (default: the models that this project ships)

Prints the errors of the fit. The same trace gives the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from profiler.export import export
from profiler.fit import StepTimeRegressor, cross_validated, errors, feature_domain, fit, held_out
from profiler.overheads import ingress, overheads
from profiler.steps import Steps, as_matrix, busy_steps, replay
from profiler.trace import Trace, read_trace
from simulator.artifacts.artifact import Artifact, ErrorRow, Memory, Provenance
from simulator.artifacts.models import MODELS
from simulator.errors import UserError
from simulator.features import StepFeatures

FIRST_S = 60.0
BLOCK_S = 8.0
FOLDS = 5

NOTE = "Fitted to a trace, until profiles replace it: replaying that trace is in-sample. Launch times cannot be told from it: zero."


def fit_trace(folder: Path) -> tuple[Artifact, str]:
    """The cost model fitted to a trace, and a report of its errors.

    Raises:
        UserError: the trace is unreadable, contradicts itself, or is too short to fit.
    """
    trace = read_trace(folder)
    replayed = replay(trace)
    steps = busy_steps(trace, replayed)
    try:
        model = fit(steps)
        rows = _error_rows(steps, model)
    except ValueError as error:
        raise UserError(f"trace {folder}: {error}") from None
    artifact = Artifact(
        format_version=1,
        gpu=trace.meta.gpu,
        model=trace.meta.model,
        weights=trace.meta.weights,
        kv_cache_dtype=trace.meta.kv_cache_dtype,
        tensor_parallel_size=trace.meta.tensor_parallel_size,
        engine=f"{trace.meta.engine.name} {trace.meta.engine.version}",
        memory=_memory(trace),
        step=model.regimes(),
        overheads=overheads(trace, replayed, model.predict(as_matrix(replayed.features))),
        domain=feature_domain(steps.features, [name for name in StepFeatures._fields if name != "graph_mode"]),
        error=rows,
        provenance=Provenance(source=trace.meta.name, sha256=trace.sha256, fitted_by="profiler.fit_trace", note=NOTE),
    )
    return artifact, _report(artifact, ingress(trace, replayed)[1])


def _error_rows(steps: Steps, model: StepTimeRegressor) -> list[ErrorRow]:
    # Of a trace that is not twice as long, the first half.
    first_s = min(FIRST_S, float(steps.end_s[-1]) / 2)
    return [
        *held_out(steps, first_s, f"fitted to the first {first_s:g} s, judged on the rest"),
        *cross_validated(steps, BLOCK_S, FOLDS, f"cross-validated, every {FOLDS}th {BLOCK_S:g} s left out"),
        *errors(steps, model.predict(steps.matrix), "in-sample"),
    ]


def _memory(trace: Trace) -> Memory:
    engine = trace.meta.engine
    return Memory(
        num_gpu_blocks=engine.num_gpu_blocks,
        block_size=engine.block_size,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        max_model_len=engine.max_model_len,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_num_seqs=engine.max_num_seqs,
    )


def _report(artifact: Artifact, ingress_share: float) -> str:
    width = max(len(row.judged_on) for row in artifact.error)
    lines = [f"{'predicted / measured - 1':{width}}  {'n':>7} {'median':>7} {'p90':>7} {'sum':>7}"]
    lines += [f"{r.judged_on:{width}}  {r.n:7,} {r.median_abs:7.2%} {r.p90_abs:7.2%} {r.signed_mean:+7.2%}" for r in artifact.error]
    ingress_ms, egress_ms = artifact.overheads.ingress_ns / 1e6, artifact.overheads.egress_ns / 1e6
    lines.append(f"in-sample: ingress {ingress_ms:.2f} ms (explains {ingress_share:.0%} of the requests), egress {egress_ms:.2f} ms")
    for mode, regime in artifact.step.items():
        lines.append(f"{mode}, ns: " + " + ".join(f"{value:,.6g} {term}" for term, value in regime.gpu_ns.items()))
    return "\n".join(lines)


def _arguments(argv: list[str]) -> tuple[Path, Path]:
    given: dict[str, str] = {}
    for argument in argv:
        key, equals, value = argument.partition("=")
        if key not in ("trace", "models") or not equals or not value or key in given:
            raise UserError(f"argument {argument!r}: expected trace=FOLDER, and if you like models=FOLDER, each once")
        given[key] = value
    if "trace" not in given:
        raise UserError("trace is missing: python -m profiler.fit_trace trace=FOLDER [models=FOLDER]")
    return Path(given["trace"]), Path(given.get("models", MODELS))


def main(argv: list[str]) -> int:
    """The command; returns its exit status."""
    if argv in (["--help"], ["-h"]):
        sys.stdout.write(f"{__doc__}\n")
        return 0
    try:
        folder, models = _arguments(argv)
        artifact, report = fit_trace(folder)
        path = export(artifact, models)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{report}\nwritten: {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
