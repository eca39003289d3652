"""Random fleets: replicas of several groups that fail, drain, are deployed anew, and come and go with the load."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simulator.cluster import Group
from simulator.cost import CostModel
from simulator.fleet.autoscaler import Autoscaling
from simulator.fleet.disaggregation import Disaggregation
from simulator.fleet.outages import Drain, Failure, Outages, RandomFailures, RollingDeploy
from simulator.simulate import Scenario
from tests.support.cases import random_cost
from tests.support.impatient import impatient_scenario


def fleet_scenario(seed: int) -> Scenario:
    """The same scenario for the same seed: outages, autoscaling or a second group, or several of them."""
    scenario = impatient_scenario(seed)
    rng = np.random.default_rng([seed, 4])
    step_s = scenario.cost.artifact.step["none"].gpu_ns["one"] / 1e9
    gpus = int(rng.choice([1, 4, 8]))
    scenario = replace(scenario, cost=with_gpus(scenario.cost, gpus), num_replicas=int(rng.integers(1, 4)))
    if rng.random() < 0.4:
        seats = min(int(rng.integers(1, 5)), scenario.engine.max_num_batched_tokens)
        engine = scenario.engine.model_copy(update={"max_num_seqs": seats, "async_scheduling": bool(rng.random() < 0.5)})
        others = Group("others", engine, with_gpus(random_cost(rng), 1), int(rng.integers(1, 3)))
        scenario = replace(scenario, others=(others,))
    if rng.random() < 0.5:
        scenario = replace(
            scenario,
            clients=scenario.clients if rng.random() < 0.7 else None,
            autoscaling=Autoscaling(
                metric=str(rng.choice(["outstanding", "kv_usage"])),
                target=float(rng.choice([0.2, 0.5, 2.0])),
                max_replicas=int(rng.integers(2, 6)),
                interval_s=float(rng.integers(1, 30)) * step_s,
                scale_down_window_s=float(rng.integers(0, 60)) * step_s,
                engine_start_s=float(rng.integers(0, 20)) * step_s,
            ),
        )
    if scenario.autoscaling is None or rng.random() < 0.3:
        scenario = replace(scenario, outages=random_outages(rng, step_s))
    return scenario


def split_scenario(seed: int) -> Scenario:
    """Prompts on replicas of their own, with and without impatient clients; transfers of no time, of a step, or longer than answers."""
    scenario = impatient_scenario(seed)
    rng = np.random.default_rng([seed, 5])
    step_ns = int(scenario.cost.artifact.step["none"].gpu_ns["one"])
    split = Disaggregation(
        prefill_replicas=int(rng.integers(1, 3)),
        bandwidth_gb_per_s=float(rng.choice([1.0, 1e6])),
        latency_s=float(rng.choice([0, 1, 5])) * step_ns / 1e9,
        bytes_per_block=float(rng.choice([step_ns / 10, step_ns])),
    )
    return replace(scenario, disaggregation=split, clients=scenario.clients if rng.random() < 0.6 else None)


def random_outages(rng: np.random.Generator, step_s: float) -> Outages:
    """At instants on the grid of the steps."""
    node, down_s, at_s = int(rng.integers(0, 3)), float(rng.integers(1, 40)) * step_s, float(rng.integers(1, 200)) * step_s
    events = (
        Failure(at_s=at_s, node=node, down_s=down_s),
        Drain(at_s=at_s * 1.5, node=0, down_s=down_s),
        RollingDeploy(at_s=at_s * 0.7, at_once=int(rng.integers(1, 3))),
    )
    random = RandomFailures(mtbf_s=150 * step_s, mttr_s=20 * step_s, repair=str(rng.choice(["exponential", "constant"])))
    return Outages(
        engine_start_s=float(rng.integers(0, 10)) * step_s,
        random=random if rng.random() < 0.5 else None,
        events=tuple(event for event in events if rng.random() < 0.6),
    )


def with_gpus(cost: CostModel, gpus: int) -> CostModel:
    """The same step times, of a replica on so many GPUs."""
    return CostModel(cost.artifact.model_copy(update={"tensor_parallel_size": gpus}))
