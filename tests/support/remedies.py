"""Random services with remedies that vLLM lacks: predictions right and wrong, every policy, every router."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simulator.engine import EngineConfig
from simulator.policies.policy import Policy
from simulator.request import RequestTable
from simulator.routers import ROUTERS
from simulator.simulate import Scenario
from simulator.workload import Workload
from tests.support.cases import Case, random_case
from tests.support.services import random_scenario


def random_policy(rng: np.random.Generator) -> Policy:
    """Each part on its own, and all together."""
    queue = str(rng.choice(["vllm", "shortest_predicted_first", "shortest_remaining_first"]))
    admission = str(rng.choice(["vllm", "vllm", "predicted_kv"]))
    return Policy(
        queue=queue,
        aging_tokens_per_s=0.0 if queue == "vllm" else float(rng.choice([0.0, 3e5, 3e6])),
        preemption=str(rng.choice(["vllm", "longest_remaining", "most_blocks", "fewest_blocks"])),
        admission=admission,
        overcommit=1.0 if admission == "vllm" else float(rng.choice([0.5, 1.0, 1.7])),
    )


def with_predictions(requests: RequestTable, rng: np.random.Generator) -> RequestTable:
    """Perfect, or off by a factor, or the same for all: in this case mostly passed."""
    noise = np.exp(float(rng.choice([0.0, 0.5, 1.5])) * rng.standard_normal(len(requests)))
    predicted = np.rint(requests.output_tokens * noise) if rng.random() < 0.8 else np.full(len(requests), float(rng.integers(1, 9)))
    client = rng.integers(0, 3, len(requests))
    limited = np.clip(predicted.astype(np.int64), 1, requests.max_tokens)
    return replace(requests, predicted_tokens=limited, client=client, client_names=("a", "b", "c"))


def random_remedied_case(seed: int) -> tuple[Case, Policy]:
    """One engine, as `random_case` with the same seed, under a policy."""
    case, rng = random_case(seed), np.random.default_rng([seed, 2])
    policy = random_policy(rng)
    return replace(case, requests=with_predictions(case.requests, rng), engine=compatible(case.engine, policy)), policy


def compatible(engine: EngineConfig, policy: Policy) -> EngineConfig:
    """The engine without `priority` where the policy brings a queue of its own."""
    return engine if policy.queue == "vllm" else engine.model_copy(update={"scheduling_policy": "fcfs"})


def random_remedied_scenario(seed: int) -> Scenario:
    """A service as `random_scenario` with the same seed, under a policy and behind any router."""
    scenario, rng = random_scenario(seed), np.random.default_rng([seed, 3])
    policy = random_policy(rng)
    requests = with_predictions(scenario.workload.requests, rng)
    return replace(
        scenario,
        workload=Workload(requests, scenario.workload.loop),
        engine=compatible(scenario.engine, policy),
        policy=policy,
        router=str(rng.choice(sorted(ROUTERS))),
        num_replicas=int(rng.choice([1, 2, 3, 4])),
    )
