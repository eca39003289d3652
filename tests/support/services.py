"""Random services: replicas behind a router, clients of every kind, with or without an early end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simulator.cost import CostModel
from simulator.simulate import Scenario
from simulator.workload import Barrier, ClosedLoop, OpenLoop, Workload
from tests.support.cases import Case, random_case, random_speculative_case


def random_scenario(seed: int) -> Scenario:
    """The same scenario for the same seed. About a third ends early, often at the very instant at which a step ends."""
    return _service(random_case(seed, max_requests=80), seed)


def random_speculative_scenario(seed: int) -> Scenario:
    """The same with speculative decoding."""
    return _service(random_speculative_case(seed, max_requests=80), seed)


def _service(case: Case, seed: int) -> Scenario:
    rng = np.random.default_rng([seed, 1])
    step_ns = int(case.cost.artifact.step["none"].gpu_ns["one"])
    think_s = float(rng.choice([0, step_ns, 12_345])) / 1e9
    loops = [OpenLoop(), ClosedLoop(int(rng.integers(1, 12)), think_s), Barrier(int(rng.integers(1, 12)))]
    return Scenario(
        Workload(case.requests, loops[int(rng.choice(3, p=[0.6, 0.25, 0.15]))]),
        case.engine,
        case.cost,
        num_replicas=int(rng.choice([1, 2, 3])),
        router=str(rng.choice(["least_requests", "round_robin", "random"])),
        seed=seed,
        horizon_s=float(rng.integers(5, 400)) * step_ns / 1e9 if rng.random() < 0.35 else None,
        sample_s=float(rng.choice([1, 3, 7.001])) * step_ns / 1e9,
        acceptance=case.acceptance,
    )


def same_way_out(scenario: Scenario) -> Scenario:
    """The same, with a way to the client that does not depend on the batch: a law that counts in the engine can subtract it."""
    others = tuple(replace(group, cost=_same_way_out(group.cost)) for group in scenario.others)
    return replace(scenario, cost=_same_way_out(scenario.cost), others=others)


def _same_way_out(cost: CostModel) -> CostModel:
    overheads = cost.artifact.overheads.model_copy(update={"egress_per_seq_ns": 0})
    return CostModel(cost.artifact.model_copy(update={"overheads": overheads}))


def with_stride(scenario: Scenario, stride: int | None) -> Scenario:
    """The same scenario, simulated with another stride."""
    return replace(scenario, stride=stride)
