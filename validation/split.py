"""Where an error comes from: the cost model on the measured batches, the scheduler on the measured durations, or both together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.workload.base import NS_PER_S
from validation.batches import BatchErrors, batch_errors
from validation.compare import Comparison, Preempted, preempted, relative
from validation.durations import on_measured_steps
from validation.intervals import STATISTICS
from validation.replay import quantiles, tpot

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class SchedulerErrors:
    """The scheduler on the measured durations."""

    errors: dict[str, dict[str, float | None]]
    """Of `e2e_s`, `tpot_s`, `ttft_s`: relative errors by statistic."""
    preemptions: Preempted
    same_composition: float


@dataclass(frozen=True)
class Split:
    """Errors of each part alone; the comparison itself has both together."""

    cost_model: BatchErrors | None
    scheduler: SchedulerErrors | None
    why_not: str
    """What could not be told, and why; empty: all was."""


def split(comparison: Comparison) -> Split:
    """Splits the error of a trace that has steps."""
    replay, steps = comparison.replay, comparison.steps
    if steps is None:
        return Split(None, None, "the trace has no steps.csv.gz, so the error cannot be split by source")
    scenario, requests = replay.result.scenario, replay.result.requests
    batches = batch_errors(steps, requests, comparison.measured, scenario.engine, scenario.cost)
    idle = "" if batches else "the engine was hardly ever busy for six steps on end: no error of the cost model alone"
    if scenario.num_replicas > 1:
        return Split(batches, None, idle or "several replicas: the scheduler's replay does not know whose step a measured duration is")
    if replay.recording.meta.speculative is not None:
        return Split(batches, None, idle or "speculation: accepted drafts are drawn, so steps of replay and trace are not the same ones")
    return Split(batches, _scheduler(comparison), idle)


def _scheduler(comparison: Comparison) -> SchedulerErrors:
    assert comparison.steps is not None
    alone = on_measured_steps(comparison.replay, comparison.steps)
    result = alone.result
    ttft_s, e2e_s = ((column - result.sent_ns) / NS_PER_S for column in (result.first_token_ns, result.finish_ns))
    simulated = {"e2e_s": e2e_s, "tpot_s": tpot(ttft_s, e2e_s, result.requests.output_tokens), "ttft_s": ttft_s}
    counts = preempted(alone.preemptions.astype(np.float64), comparison.measured.get("preemptions"), comparison.steps)
    errors = {name: _errors(column, comparison.measured[name]) for name, column in simulated.items()}
    return SchedulerErrors(errors, counts, alone.same_composition)


def _errors(simulated: Float64, measured: Float64) -> dict[str, float | None]:
    both = np.isfinite(simulated) & np.isfinite(measured)
    of_simulated, of_measured = quantiles(simulated[both]), quantiles(measured[both])
    if of_simulated is None or of_measured is None:
        return dict.fromkeys(STATISTICS)
    return {name: relative(of_simulated[name], of_measured[name]) for name in STATISTICS}
