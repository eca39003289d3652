"""Policies and routers beyond vLLM's: step by step or in strides the same, and as the plain engine has them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from simulator.routers import ROUTERS
from simulator.routers.vllm import VllmDataParallel
from simulator.simulate import Result, Scenario, simulate
from simulator.workload import OpenLoop, Workload
from tests.equivalence.test_oracle import SAMPLE_S, assert_same_requests, assert_same_timeline, step_ends
from tests.equivalence.test_stride import assert_same
from tests.reference.plain_engine import PlainEngine
from tests.support.prefixes import random_prefix_scenario
from tests.support.remedies import random_remedied_case, random_remedied_scenario
from tests.support.services import with_stride

SEEDS = range(30_000, 30_300)
STRIDES = [2, 17, None]


@pytest.fixture(autouse=True)
def _counts_are_told_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """These services last milliseconds."""
    monkeypatch.setattr(VllmDataParallel, "every_ns", 4_000)


@cache
def reference(seed: int) -> Result:
    return simulate(with_stride(random_remedied_scenario(seed), 1))


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("seed", SEEDS)
def test_stride_changes_nothing(seed: int, stride: int | None) -> None:
    result = simulate(with_stride(random_remedied_scenario(seed), stride))
    assert_same(result, reference(seed))
    assert result.held_back.tolist() == reference(seed).held_back.tolist()


@pytest.mark.parametrize("seed", range(40_000, 40_080))
def test_stride_changes_nothing_where_prefixes_are_cached(seed: int) -> None:
    router = sorted(ROUTERS)[seed % len(ROUTERS)]
    scenario = replace(random_prefix_scenario(seed), num_replicas=3, router=router)
    assert_same(simulate(scenario), simulate(with_stride(scenario, 1)))


@cache
def plain_run(seed: int) -> PlainEngine:
    case, policy = random_remedied_case(seed)
    return PlainEngine(case.requests, case.engine, case.cost, policy=policy).run()


@pytest.mark.parametrize("stride", [1, None])
@pytest.mark.parametrize("seed", SEEDS)
def test_decisions_are_those_of_the_plain_engine(seed: int, stride: int | None) -> None:
    case, policy = random_remedied_case(seed)
    workload = Workload(case.requests, OpenLoop())
    result = simulate(Scenario(workload, case.engine, case.cost, policy=policy, stride=stride, sample_s=SAMPLE_S))
    plain = plain_run(seed)
    assert_same_requests(result, plain)
    assert_same_timeline(result, plain)
    assert step_ends(result).tolist() == [step.end_ns for step in plain.steps if step.end_ns >= 0]


def test_the_sample_holds_what_could_go_wrong() -> None:
    found: Counter[str] = Counter()
    for seed in SEEDS:
        result = reference(seed)
        scenario, policy = result.scenario, result.scenario.policy
        found[f"preemptions, {policy.preemption}"] += int(result.preemptions.sum())
        found[f"preemptions, {policy.queue}"] += int(result.preemptions.sum())
        found[f"spread by {scenario.router}"] += len(np.unique(result.replica[result.replica >= 0])) > 1
        found["held back"] += int(result.held_back.sum())
        emitted, requests = result.emitted_tokens, result.requests
        found["predictions passed"] += int((emitted > requests.predicted_tokens).sum())
        found["steps saved"] += result.num_events - simulate(with_stride(scenario, None)).num_events
        plain = plain_run(seed)
        found["held back, plain"] += plain.counts["held back by the forecast"]
        found["refunds"] += plain.counts["refunds"] if policy.preemption != "vllm" else 0
    for rule in ("longest_remaining", "most_blocks", "fewest_blocks", "shortest_predicted_first", "shortest_remaining_first"):
        assert found[f"preemptions, {rule}"] >= 100, rule
    for router in ROUTERS:
        assert found[f"spread by {router}"] >= 15, router
    assert min(found[name] for name in ("held back", "predictions passed", "held back, plain", "refunds")) >= 50
    assert found["steps saved"] >= 10_000
