"""Where production spends its time on the grid: an error counts by the time of the steps that are predicted with it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from profiler.options import CONF
from profiler.profiled import Profiled
from profiler.steps import pad
from simulator.artifacts.artifact import Artifact
from simulator.cluster import NS_PER_S
from simulator.compose import compose_file
from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.features import StepFeatures
from simulator.planning.sizing import Demand
from simulator.simulate import Scenario, simulate
from simulator.workload import Workload, generate, validate

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

QUESTION = CONF / "capacity_planning.yaml"
"""The default question, whose traffic it is."""
LOADS = (0.25, 0.5, 0.75)
"""Of what one replica carries at most."""
STAYS = (2.0, 4.0)
"""A run counts from here to here, in mean stays of a request."""
SAMPLE = 500
"""Requests by which a replica's limit is found."""


def time_shares(artifact: Artifact, known: Profiled) -> Float64:
    """float64[rows of `known`]: the share of time in steps whose nearest row, among those of their kind, it is.

    One replica serves the traffic of `QUESTION` at each of `LOADS`; the same artifact gives the same shares.

    Args:
        artifact: the cost model, of an engine that does not speculate.
        known: rows of the grid.
    """
    memory = artifact.memory
    names = ("max_model_len", "max_num_batched_tokens", "max_num_seqs", "block_size", "num_gpu_blocks")
    engine = EngineConfig.model_validate({name: getattr(memory, name) for name in names})
    demand = Demand(_traffic(1.0, engine, num_requests=SAMPLE).requests, 1.0, engine, CostModel(artifact))
    places = {kind: _places(known.features(), (known.table["kind"] == kind).to_numpy()) for kind in ("decode", "prefill", "mixed")}
    shares = np.zeros(len(known.table))
    for load in LOADS:
        steps, busy_ns = _steps(load, demand)
        for kind, its in _kinds(steps).items():
            rows, at = places[kind]
            if len(rows) and its.any():
                nearest = rows[_nearest(at, _places(steps, its)[1])]
                np.add.at(shares, nearest, busy_ns[its] / busy_ns.sum() / len(LOADS))
    return shares


@cache
def _workload() -> dict[str, Any]:
    """Composing it takes a sixth of a second, and every fit needs it four times."""
    workload: dict[str, Any] = compose_file(QUESTION, [])["workload"]
    return workload


def _traffic(rate: float, engine: EngineConfig, num_requests: int | None = None, duration_s: float | None = None) -> Workload:
    asked = _workload()
    spec = validate(asked | {"arrivals": asked["arrivals"] | {"rate": float(f"{rate:.6g}")}})
    return generate(spec, seed=0, max_model_len=engine.max_model_len, num_requests=num_requests, duration_s=duration_s)


def _steps(load: float, demand: Demand) -> tuple[StepFeatures, Float64]:
    """The stretches of steps of a steady service (columns, each by the step in its middle), and float64[k] the GPU's time in each."""
    rate = load * demand.most_tokens_per_s / float(demand.requests.output_tokens.mean())
    stay_s = float(demand.requests.output_tokens.mean()) * demand.step_s(load * demand.most_running)
    begin_s, end_s = (stays * stay_s for stays in STAYS)
    workload = _traffic(rate, demand.engine, duration_s=end_s)
    rows = simulate(Scenario(workload, demand.engine, demand.cost, horizon_s=end_s)).logs[0].rows
    rows = rows[(rows[:, 9] >= begin_s * NS_PER_S) & (rows[:, 2] + rows[:, 4] > 0)]
    first_step, steps, prefill_seqs, prefill_tokens, decode_seqs, intercept_sum, intercept_max = rows.T[:7]
    middle = first_step + steps // 2
    decodes = decode_seqs > 0
    padded, mode = pad(demand.engine, prefill_tokens + decode_seqs, prefill_seqs == 0)
    features = StepFeatures(
        prefill_seqs=prefill_seqs,
        prefill_tokens=prefill_tokens,
        # The traffic's prompts are short: nearly all are computed in one chunk.
        prefill_context_tokens=prefill_tokens,
        prefill_attention_tokens=prefill_tokens * prefill_tokens // np.maximum(2 * prefill_seqs, 1),
        decode_seqs=decode_seqs,
        decode_context_tokens=np.where(decodes, intercept_sum + decode_seqs * middle, 0),
        decode_context_max_tokens=np.where(decodes, intercept_max + middle, 0),
        padded_tokens=padded,
        graph_mode=mode,
    )
    step_ns = [demand.cost.gpu_ns(StepFeatures(*row)) for row in zip(*np.broadcast_arrays(*features), strict=True)]
    return features, np.array(step_ns, np.float64) * steps


def _kinds(steps: StepFeatures) -> dict[str, NDArray[np.bool_]]:
    decodes, prefills = steps.decode_seqs > 0, steps.prefill_seqs > 0
    return {"decode": decodes & ~prefills, "prefill": prefills & ~decodes, "mixed": decodes & prefills}


def _places(steps: StepFeatures, its: NDArray[np.bool_]) -> tuple[Int64, Float64]:
    """Indices of the chosen steps, and where they lie: logarithms of their sizes, so that near means of about the same time."""
    seqs = np.maximum(steps.decode_seqs, 1)
    sizes = (steps.padded_tokens, steps.prefill_tokens, steps.decode_context_tokens / seqs)
    return np.flatnonzero(its), np.log(1.0 + np.column_stack([np.broadcast_to(size, its.shape)[its] for size in sizes]))


def _nearest(places: Float64, wanted: Float64) -> Int64:
    """int64[len(wanted)]: index of the place that is nearest to each."""
    return np.array([int(((places - one) ** 2).sum(axis=1).argmin()) for one in wanted], np.int64)
