"""Random services with several optimizations at once: what is examined alone elsewhere, together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from simulator.engine import EngineConfig
from simulator.policies.policy import Policy
from simulator.simulate import Scenario
from simulator.speculation import Acceptance
from tests.support.cases import Case, random_case, random_speculative_case
from tests.support.fleets import fleet_scenario, split_scenario
from tests.support.impatient import impatient_scenario
from tests.support.prefixes import caching, conversations, sharing
from tests.support.remedies import compatible, random_policy, random_remedied_case, random_remedied_scenario, with_predictions
from tests.support.services import random_speculative_scenario

Make = Callable[[int], Scenario]


def cached(make: Make, seed: int) -> Scenario:
    """The scenario with prefix caching: of prompts with much in common, every fourth time of prompts with nothing, or of conversations."""
    scenario = make(seed)
    workload = scenario.workload
    if seed % 4 == 0:
        workload = conversations(seed, min(group.engine.max_model_len for group in scenario.groups))
    elif seed % 4 != 1:
        workload = replace(workload, requests=sharing(workload.requests, seed))
    # A second pool may have other blocks, or remember nothing.
    sizes = np.random.default_rng([seed, 6]).choice([0, 1, 3], len(scenario.others)).tolist()
    others = tuple(
        replace(group, engine=caching(group.engine.model_copy(update=_blocks_of(size, group.engine.usable_blocks)))) if size else group
        for group, size in zip(scenario.others, sizes, strict=True)
    )
    return replace(scenario, workload=workload, engine=caching(scenario.engine), others=others)


def _blocks_of(size: int, blocks: int) -> dict[str, int]:
    """Options of a pool of blocks of this size with room for whatever the pool before had room for."""
    return {"block_size": size, "num_gpu_blocks": blocks * 16 // size + 1}


def everything(seed: int) -> Scenario:
    """A fleet with impatient clients, under a policy, behind any router."""
    scenario, rng = fleet_scenario(seed), np.random.default_rng([seed, 7])
    remedied = random_remedied_scenario(seed)
    policy: Policy = random_policy(rng)
    requests = with_predictions(scenario.workload.requests, rng)
    return replace(
        scenario,
        workload=replace(scenario.workload, requests=requests),
        engine=compatible(scenario.engine, policy),
        others=tuple(replace(group, engine=compatible(group.engine, policy)) for group in scenario.others),
        policy=policy,
        router=remedied.router,
    )


def drafting(make: Make, seed: int) -> Scenario:
    """The scenario with speculative decoding: on all replicas, or, where a pool has other engines, now and then without there."""
    scenario, case = make(seed), random_speculative_case(seed)
    rng = np.random.default_rng([seed, 8])
    return replace(
        scenario,
        engine=speculating(scenario.engine, case.engine),
        others=tuple(
            replace(group, engine=speculating(group.engine, case.engine)) if rng.random() < 0.7 else group for group in scenario.others
        ),
        cost=case.cost if not scenario.others else scenario.cost,
        acceptance=case.acceptance,
    )


def speculating(engine: EngineConfig, other: EngineConfig) -> EngineConfig:
    """The engine with the drafts of the other one, and with what they ask of its options."""
    assert other.speculative is not None
    drafts = other.speculative
    options = engine.model_dump() | {"speculative": drafts.model_dump()}
    if not drafts.uses_eagle:
        options["async_scheduling"] = False
    if engine.long_prefill_token_threshold:
        options["long_prefill_token_threshold"] = max(engine.long_prefill_token_threshold, 1 + drafts.num_speculative_tokens)
    options["max_num_batched_tokens"] += engine.max_num_seqs * (drafts.method == "draft_model")
    return EngineConfig(**options)


def without_room_for_padding(seed: int) -> Scenario:
    """Drafts and prefix caching on budgets that decodes use up but for a few tokens: who finds all but one token of itself waits."""
    scenario, rng = cached(random_speculative_scenario, 4 * seed + 2), np.random.default_rng([seed, 9])
    speculative = scenario.engine.speculative
    assert speculative is not None
    # EAGLE never finds all but one token: its last block is left out.
    method = str(rng.choice(["ngram", "draft_model"]))
    drafts = max(speculative.num_speculative_tokens, 2)
    block_size = int(rng.choice([1, 2]))
    room = int(rng.integers(1, 4)) * (1 + drafts) + int(rng.integers(1, 1 + drafts))
    seats = min(room, 8)
    budget = room + seats * (method == "draft_model")
    options = scenario.engine.model_dump() | {
        "speculative": {"method": method, "num_speculative_tokens": drafts},
        "async_scheduling": False,
        "block_size": block_size,
        "num_gpu_blocks": int(-(-scenario.engine.max_model_len // block_size) * rng.choice([1.5, 2.0, 3.0, 5.0])) + 1,
        "max_num_seqs": seats,
        "max_num_batched_tokens": budget,
        "enable_chunked_prefill": True,
        "long_prefill_token_threshold": 0,
        "scheduler_reserve_full_isl": False,
        "watermark": 0.0,
    }
    acceptance = Acceptance(tuple(np.sort(rng.random(drafts))[::-1].tolist()))
    return replace(scenario, engine=EngineConfig(**options), acceptance=acceptance, num_replicas=1, horizon_s=None)


KINDS: dict[str, Make] = {
    "policies": random_remedied_scenario,
    "clients": impatient_scenario,
    "fleets": fleet_scenario,
    "prefill and decode apart": split_scenario,
    "everything": everything,
}


def drafting_case(seed: int) -> tuple[Case, Policy]:
    """One engine with drafts under a policy, every second time with prefix caching."""
    case, (remedied, policy) = random_speculative_case(seed), random_remedied_case(seed)
    requests = replace(remedied.requests, prompt_tokens=case.requests.prompt_tokens)
    case = replace(case, requests=requests, engine=compatible(case.engine, policy))
    return cached_case(seed, case) if seed % 2 else case, policy


def drafting_cached_case(seed: int) -> Case:
    """One engine as vLLM has it, with drafts and prefix caching."""
    return cached_case(seed, random_speculative_case(seed))


def cached_remedied_case(seed: int) -> tuple[Case, Policy]:
    """One engine with prefix caching under a policy; every fourth time, prompts have nothing in common."""
    case, policy = random_remedied_case(seed)
    return cached_case(seed, case), policy


def cached_case(seed: int, case: Case | None = None) -> Case:
    """One engine with prefix caching; every fourth time, prompts have nothing in common."""
    case = case or random_case(seed)
    requests = case.requests if seed % 4 == 1 else sharing(case.requests, seed)
    return replace(case, requests=requests, engine=caching(case.engine))
