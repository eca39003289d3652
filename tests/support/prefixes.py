"""The random cases of `cases.py` and `services.py` with prefix caching, and prompts that have much in common."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simulator.content import PromptContent
from simulator.engine import EngineConfig
from simulator.request import RequestTable
from simulator.simulate import Scenario
from tests.support.cases import Case, random_case
from tests.support.services import random_scenario


def sharing(requests: RequestTable, seed: int) -> RequestTable:
    """The same prompts, now with heads in common: one or two segments of few contents, often all of the prompt."""
    rng = np.random.default_rng([seed, 2])
    contents = int(rng.integers(1, 4))
    segments = []
    for prompt_tokens in requests.prompt_tokens.tolist():
        head = int(rng.integers(0, prompt_tokens + 1)) if rng.random() < 0.6 else prompt_tokens
        first = int(rng.integers(0, head + 1)) if rng.random() < 0.3 else head
        segments.append([(int(rng.integers(contents)), first), (contents + int(rng.integers(contents)), head - first)])
    return replace(requests, content=PromptContent.build(segments))


def caching(engine: EngineConfig) -> EngineConfig:
    """The same engine with prefix caching."""
    return EngineConfig(**engine.model_dump() | {"enable_prefix_caching": True})


def random_prefix_case(seed: int) -> Case:
    """The case of the same seed, with prefix caching."""
    case = random_case(seed)
    return Case(sharing(case.requests, seed), caching(case.engine), case.cost)


def random_prefix_scenario(seed: int) -> Scenario:
    """The scenario of the same seed, with prefix caching."""
    scenario = random_scenario(seed)
    workload = replace(scenario.workload, requests=sharing(scenario.workload.requests, seed))
    return replace(scenario, workload=workload, engine=caching(scenario.engine))
