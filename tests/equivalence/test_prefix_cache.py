"""Prefix caching: the simulator against the plain engine, which spells out every block, and the macro-step against single steps."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from simulator.scheduler import Scheduler
from simulator.simulate import Result, Scenario, simulate
from simulator.step.stepplan import StepPlan
from simulator.workload import OpenLoop, Sessions, Workload
from tests.equivalence.test_oracle import SAMPLE_S, Recorder, assert_same, decision
from tests.equivalence.test_stride import assert_same as assert_equal
from tests.reference.plain_engine import PlainEngine
from tests.support.prefixes import random_prefix_case, random_prefix_scenario
from tests.support.services import with_stride

SEEDS = range(200)
SERVICES = range(10_000, 10_200)


@cache
def plain_run(seed: int) -> PlainEngine:
    case = random_prefix_case(seed)
    return PlainEngine(case.requests, case.engine, case.cost).run()


def run(seed: int, stride: int | None) -> Result:
    case = random_prefix_case(seed)
    return simulate(Scenario(Workload(case.requests, OpenLoop()), case.engine, case.cost, stride=stride, sample_s=SAMPLE_S))


@pytest.mark.parametrize("stride", [1, None])
@pytest.mark.parametrize("seed", SEEDS)
def test_all_that_happens_is_that_of_the_plain_engine(seed: int, stride: int | None) -> None:
    assert_same(run(seed, stride), plain_run(seed))


@pytest.mark.parametrize("seed", SEEDS)
def test_every_decision_is_that_of_the_plain_engine(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    run(seed, stride=1)
    assert recorder.plans == [decision(step) for step in plain_run(seed).steps]


def test_the_sample_holds_what_could_go_wrong() -> None:
    counts: Counter[str] = Counter()
    for seed in SEEDS:
        plain = plain_run(seed)
        preempted = f"preemptions, {plain.engine.scheduling_policy}, async {plain.engine.async_scheduling}"
        counts[preempted] += sum(request.preemptions for request in plain.requests)
        counts.update(plain.counts)
    at_least = {f"preemptions, {policy}, async {mode}": 100 for policy in ("fcfs", "priority") for mode in (True, False)} | {
        "tokens found": 20_000,
        "tokens found by resumed requests": 2_000,
        "held back by the full-sequence gate": 500,
        "refunds": 10,
        "finished after their preemption": 5,
    }
    assert {name: counts[name] for name, least in at_least.items() if counts[name] < least} == {}


@cache
def reference(seed: int) -> Result:
    return simulate(with_stride(random_prefix_scenario(seed), 1))


@pytest.mark.parametrize("stride", [3, None])
@pytest.mark.parametrize("seed", SERVICES)
def test_stride_changes_nothing(seed: int, stride: int | None) -> None:
    result = simulate(with_stride(random_prefix_scenario(seed), stride))
    assert_equal(result, reference(seed))
    assert result.cached_tokens.tolist() == reference(seed).cached_tokens.tolist()


def test_the_services_find_prefixes_and_preempt() -> None:
    found: Counter[str] = Counter()
    for seed in SERVICES:
        result = reference(seed)
        engine = result.scenario.engine
        found[f"preemptions, {engine.scheduling_policy}, async {engine.async_scheduling}"] += int(result.preemptions.sum())
        found["cached"] += int(result.cached_tokens.sum())
        found["conversations"] += isinstance(result.scenario.workload.loop, Sessions)
        found["several replicas"] += result.scenario.num_replicas > 1
    assert min(found[f"preemptions, {policy}, async {mode}"] for policy in ("fcfs", "priority") for mode in (True, False)) >= 60
    assert found["conversations"] >= 50
    assert found["cached"] > 10_000
    assert found["several replicas"] > 50


@pytest.mark.parametrize("seed", range(60))
def test_free_and_held_blocks_are_all_usable_blocks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that several hold counts once; a cached block in the free queue is free."""
    schedule = Scheduler.schedule
    steps = 0

    def checked(scheduler: Scheduler) -> StepPlan:
        nonlocal steps
        plan = schedule(scheduler)
        scheduler.check_blocks()
        steps += 1
        return plan

    monkeypatch.setattr(Scheduler, "schedule", checked)
    simulate(random_prefix_scenario(seed))
    assert steps
