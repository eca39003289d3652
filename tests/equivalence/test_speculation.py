"""Speculative decoding against the plain engine of `tests/reference`, to the nanosecond, and against itself with another stride."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from simulator.drafts.verify import VerifyScheduler
from simulator.simulate import Result, Scenario, simulate
from simulator.speculation import Drafting
from simulator.workload import OpenLoop, Workload
from tests.equivalence.test_oracle import Recorder, assert_same_timeline, decision, step_ends
from tests.reference.plain_engine import PlainEngine
from tests.support.cases import random_speculative_case
from tests.support.digest import digest
from tests.support.services import random_speculative_scenario, with_stride

SEEDS = range(200)
SAMPLE_S = 7e-6


@cache
def plain_run(seed: int) -> PlainEngine:
    case = random_speculative_case(seed)
    assert case.acceptance is not None
    return PlainEngine(case.requests, case.engine, case.cost, Drafting(case.acceptance, seed)).run()


def run(seed: int, stride: int | None) -> Result:
    case = random_speculative_case(seed)
    workload = Workload(case.requests, OpenLoop())
    return simulate(Scenario(workload, case.engine, case.cost, seed=seed, stride=stride, sample_s=SAMPLE_S, acceptance=case.acceptance))


def chunk_times(result: Result) -> list[list[int]]:
    """Of every request, when the engine handled each of its chunks."""
    ends = step_ends(result)
    times: list[list[int]] = [[] for _ in range(len(result.requests))]
    segments = result.logs[0].segments
    for row, _, first_step, last_step in segments[np.lexsort((segments[:, 1], segments[:, 0]))].tolist():
        times[row] += ends[first_step : last_step + 1].tolist()
    return times


@pytest.mark.parametrize("stride", [1, None])
@pytest.mark.parametrize("seed", SEEDS)
def test_requests_steps_and_timeline_are_those_of_the_plain_engine(seed: int, stride: int | None) -> None:
    plain, result = plain_run(seed), run(seed, stride)
    visible = result.requests.visible_token
    for row, request in enumerate(plain.requests):
        assert result.scheduled_ns[row] == request.scheduled_ns
        assert result.first_token_ns[row] == request.client_ns[0]
        assert result.finish_ns[row] == request.client_ns[-1]
        seen = request.client_ns[visible[row] - 1] if visible[row] <= len(request.client_ns) else -1
        assert result.visible_ns[row] == seen
    assert result.emitted_tokens.tolist() == [request.num_output_tokens for request in plain.requests]
    assert result.preemptions.tolist() == [request.preemptions for request in plain.requests]
    # Tokens of one step reach the client together: one gap, not one for each.
    assert chunk_times(result) == [request.chunk_ns for request in plain.requests]
    assert_same_timeline(result, plain)
    assert step_ends(result).tolist() == [step.end_ns for step in plain.steps if step.end_ns >= 0]
    assert result.busy_ns.tolist() == [plain.clock.busy_ns]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_decision_is_that_of_the_plain_engine(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch, VerifyScheduler)
    run(seed, stride=1)
    assert recorder.plans == [decision(step) for step in plain_run(seed).steps]


def test_the_sample_holds_every_rule() -> None:
    counts: Counter[str] = Counter()
    for seed in SEEDS:
        plain = plain_run(seed)
        assert plain.engine.speculative is not None
        preempted = f"preemptions, {plain.engine.scheduling_policy}, {plain.engine.speculative.method}"
        counts[preempted] += sum(request.preemptions for request in plain.requests)
        counts.update(plain.counts)
        counts["batches whose attention was looked at"] += plain.attention.looks
        counts["batches that changed too soon for a look"] += plain.attention.spared
        counts["batches that stayed and were looked at again"] += plain.attention.again
    at_least = {
        "drafts accepted": 5000,
        "drafts rejected": 5000,
        "drafts cut": 200,
        "padded with drafts": 50,
        "outputs ended amid accepted drafts": 200,
        "finished after their preemption": 5,
        "wasted rows": 200,
        "batches whose attention was looked at": 3_000,
        "batches that changed too soon for a look": 15,
        "batches that stayed and were looked at again": 300,
    }
    for method in ("ngram", "draft_model", "eagle3"):
        at_least |= {f"preemptions, fcfs, {method}": 10, f"preemptions, priority, {method}": 10}
    assert {name: counts[name] for name, least in at_least.items() if counts[name] < least} == {}


@pytest.mark.parametrize("seed", range(20_000, 20_060))
def test_stride_changes_nothing(seed: int) -> None:
    scenario = random_speculative_scenario(seed)
    reference = digest(simulate(with_stride(scenario, 1)))
    for stride in (2, 17, None):
        assert digest(simulate(with_stride(scenario, stride))) == reference


def test_other_seeds_accept_other_drafts() -> None:
    scenario = random_speculative_scenario(20_000)
    assert digest(simulate(scenario)) != digest(simulate(replace(scenario, seed=1)))


def test_steps_that_decide_nothing_are_taken_at_once() -> None:
    taken = [simulate(random_speculative_scenario(seed)) for seed in range(20_000, 20_060)]
    steps = sum(log.num_steps for result in taken for log in result.logs)
    assert sum(result.num_events for result in taken) < 0.8 * steps
