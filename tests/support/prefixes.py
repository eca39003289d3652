"""The random cases of `cases.py` and `services.py` with prefix caching, and prompts that have much in common."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simulator.engine import EngineConfig
from simulator.prefix.content import PromptContent
from simulator.request import RequestTable
from simulator.simulate import Scenario
from simulator.workload import Workload, generate, validate
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
    """The scenario of the same seed, with prefix caching; every fourth serves conversations."""
    scenario = random_scenario(seed)
    engine = caching(scenario.engine)
    if seed % 4 == 0:
        return replace(scenario, workload=conversations(seed, engine.max_model_len), engine=engine)
    return replace(scenario, workload=replace(scenario.workload, requests=sharing(scenario.workload.requests, seed)), engine=engine)


def conversations(seed: int, max_model_len: int) -> Workload:
    """Short ones, within microseconds."""
    tokens = {"kind": "lognormal", "mu": 1.5, "sigma": 0.8}
    spec = {
        "kind": "sessions",
        "arrivals": {"kind": "gamma", "rate": 30_000, "cv": 1.3},
        "lengths": {"kind": "custom", "prompt": tokens, "output": tokens, "thinking": {"kind": "constant", "value": 0.5}},
        "think_s": 3e-5,
        "tool_calls_per_turn": 0.7,
        "tool_tokens": 3,
        "tool_s": 1e-5,
        "thinking": ["kept", "stripped", "kept_in_tool_loops"][seed // 4 % 3],
        "shared_prompts": {"shared_prompt_tokens": max(max_model_len // 4, 1), "num_shared_prompts": 2},
    }
    return generate(validate(spec), seed, max_model_len=max_model_len, num_requests=80)
