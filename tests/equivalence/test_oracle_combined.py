"""Prefix caching, drafts, policies and clients that leave, together, against the plain engine: every decision, to the nanosecond."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from simulator.clients.patience import ClientConfig
from simulator.drafts.verify import VerifyScheduler
from simulator.policies.policy import VLLM, Policy
from simulator.scheduler import Scheduler
from simulator.simulate import Result, Scenario, simulate
from simulator.speculation import Drafting
from simulator.step.sequence import Sequence
from simulator.workload import OpenLoop, Workload
from tests.equivalence.test_oracle import SAMPLE_S, Recorder, assert_same, assert_same_timeline, decision, step_ends
from tests.equivalence.test_oracle_aborts import assert_same_run, timeout_ns
from tests.equivalence.test_speculation import chunk_times
from tests.reference.plain_engine import PlainEngine
from tests.support.cases import Case
from tests.support.combined import cached_case, cached_remedied_case, drafting_cached_case, drafting_case
from tests.support.digest import digest

SEEDS = range(160)


@cache
def plain_remedied(seed: int) -> PlainEngine:
    case, policy = cached_remedied_case(seed)
    return PlainEngine(case.requests, case.engine, case.cost, policy=policy).run()


def remedied(seed: int, stride: int | None) -> Scenario:
    case, policy = cached_remedied_case(seed)
    return Scenario(Workload(case.requests, OpenLoop()), case.engine, case.cost, policy=policy, stride=stride, sample_s=SAMPLE_S)


@pytest.mark.parametrize("stride", [1, None])
@pytest.mark.parametrize("seed", SEEDS)
def test_policies_where_prefixes_are_cached(seed: int, stride: int | None) -> None:
    assert_same(simulate(remedied(seed, stride)), plain_remedied(seed))


@pytest.mark.parametrize("seed", SEEDS)
def test_every_decision_is_that_of_the_plain_engine(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    simulate(remedied(seed, stride=1))
    assert recorder.plans == [decision(step) for step in plain_remedied(seed).steps]


@cache
def plain_aborts(seed: int) -> PlainEngine:
    case = cached_case(seed)
    aborts_ns = case.requests.arrival_ns + timeout_ns(seed) + case.cost.artifact.overheads.ingress_ns
    return PlainEngine(case.requests, case.engine, case.cost, aborts_ns=aborts_ns.tolist()).run()


@pytest.mark.parametrize("stride", [1, None])
@pytest.mark.parametrize("seed", SEEDS)
def test_clients_that_time_out_where_prefixes_are_cached(seed: int, stride: int | None) -> None:
    case, timeout = cached_case(seed), timeout_ns(seed)
    clients = ClientConfig(timeout_s=timeout / 1e9)
    scenario = Scenario(Workload(case.requests, OpenLoop()), case.engine, case.cost, stride=stride, sample_s=SAMPLE_S, clients=clients)
    result, plain = simulate(scenario), plain_aborts(seed)
    assert_same_run(result, plain, timeout)
    for row, request in enumerate(plain.requests):
        if result.scheduled_ns[row] >= 0:
            assert result.cached_tokens[row] == request.cached_tokens


@cache
def plain_drafts(seed: int) -> PlainEngine:
    case, policy = drafting_case(seed)
    assert case.acceptance is not None
    return PlainEngine(case.requests, case.engine, case.cost, Drafting(case.acceptance, seed), policy=policy).run()


@cache
def plain_cached_drafts(seed: int) -> PlainEngine:
    case = drafting_cached_case(seed)
    assert case.acceptance is not None
    return PlainEngine(case.requests, case.engine, case.cost, Drafting(case.acceptance, seed)).run()


def drafts(seed: int, stride: int | None, case: Case, policy: Policy = VLLM) -> Scenario:
    workload = Workload(case.requests, OpenLoop())
    options = {"stride": stride, "sample_s": SAMPLE_S, "acceptance": case.acceptance, "seed": seed, "policy": policy}
    return Scenario(workload, case.engine, case.cost, **options)


def assert_same_chunks(result: Result, plain: PlainEngine) -> None:
    assert chunk_times(result) == [request.chunk_ns for request in plain.requests]
    assert result.finish_ns.tolist() == [request.client_ns[-1] for request in plain.requests]
    assert result.cached_tokens.tolist() == [request.cached_tokens for request in plain.requests]
    assert result.preemptions.tolist() == [request.preemptions for request in plain.requests]
    assert_same_timeline(result, plain)
    assert step_ends(result).tolist() == [step.end_ns for step in plain.steps if step.end_ns >= 0]


@pytest.mark.parametrize("stride", [1, None])
@pytest.mark.parametrize("seed", SEEDS)
def test_drafts_under_policies(seed: int, stride: int | None) -> None:
    assert_same_chunks(simulate(drafts(seed, stride, *drafting_case(seed))), plain_drafts(seed))


@pytest.mark.parametrize("stride", [1, None])
@pytest.mark.parametrize("seed", SEEDS)
def test_drafts_where_prefixes_are_cached(seed: int, stride: int | None) -> None:
    assert_same_chunks(simulate(drafts(seed, stride, drafting_cached_case(seed))), plain_cached_drafts(seed))


@pytest.mark.parametrize("seed", SEEDS)
def test_every_decision_with_drafts_is_that_of_the_plain_engine(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch, VerifyScheduler)
    simulate(drafts(seed, 1, drafting_cached_case(seed)))
    assert recorder.plans == [decision(step) for step in plain_cached_drafts(seed).steps]


@cache
def plain_drafts_aborted(seed: int) -> PlainEngine:
    case = drafting_cached_case(seed)
    assert case.acceptance is not None
    aborts_ns = case.requests.arrival_ns + timeout_ns(seed) + case.cost.artifact.overheads.ingress_ns
    return PlainEngine(case.requests, case.engine, case.cost, Drafting(case.acceptance, seed), aborts_ns=aborts_ns.tolist()).run()


@pytest.mark.parametrize("stride", [1, None])
@pytest.mark.parametrize("seed", SEEDS)
def test_clients_that_time_out_amid_drafts(seed: int, stride: int | None) -> None:
    timeout = timeout_ns(seed)
    scenario = replace(drafts(seed, stride, drafting_cached_case(seed)), clients=ClientConfig(timeout_s=timeout / 1e9))
    assert_same_run(simulate(scenario), plain_drafts_aborted(seed), timeout)


def test_the_sample_holds_what_could_go_wrong() -> None:
    counts: Counter[str] = Counter()
    for seed in SEEDS:
        runs = {"policies": plain_remedied(seed), "aborts": plain_aborts(seed), "drafts, policies": plain_drafts(seed)}
        runs |= {"drafts": plain_cached_drafts(seed), "drafts, aborts": plain_drafts_aborted(seed)}
        for what, plain in runs.items():
            counts.update({f"{what}: {name}": count for name, count in plain.counts.items()})
            alone = "nothing in common" if seed % 4 == 1 else "much in common"
            counts[f"{what}: tokens found by resumed requests, {alone}"] += plain.counts["tokens found by resumed requests"]
    at_least = {
        "policies: tokens found": 10_000,
        "policies: tokens found by resumed requests, nothing in common": 200,
        "policies: tokens found by resumed requests, much in common": 1_000,
        "policies: held back by the forecast": 50,
        "policies: refunds": 20,
        "drafts, policies: held back by the forecast": 50,
        "drafts, policies: refunds": 20,
        "drafts, policies: tokens found by resumed requests, much in common": 500,
        "drafts: tokens found": 10_000,
        "drafts: tokens found by resumed requests, much in common": 1_000,
        "drafts: drafts accepted": 5_000,
        "drafts: drafts rejected": 5_000,
        "drafts: padded with drafts": 50,
        "drafts, aborts: aborts, running, tokens in flight: True": 50,
        "drafts, aborts: aborts, running, tokens in flight: False": 50,
        "aborts: tokens found": 5_000,
        "aborts: tokens found by resumed requests, nothing in common": 100,
        "aborts: aborts, running, tokens in flight: True": 100,
        "aborts: aborts, running, tokens in flight: False": 100,
    }
    assert {name: counts[name] for name, least in at_least.items() if counts[name] < least} == {}


@pytest.mark.parametrize("seed", range(1, 160, 4))
def test_who_has_nothing_in_common_is_counted_until_somebody_is_preempted(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool that counts gives what the one that remembers gives, and is the one in use until there is something to find."""
    begun = 0
    begin, make = Scheduler._begin_caching, Scheduler.__init__

    def watched(scheduler: Scheduler, holding: list[Sequence]) -> None:
        nonlocal begun
        begun += 1
        begin(scheduler, holding)

    def caching_from_the_start(scheduler: Scheduler, *args: Any) -> None:
        make(scheduler, *args)
        begin(scheduler, [])

    monkeypatch.setattr(Scheduler, "_begin_caching", watched)
    result = simulate(remedied(seed, stride=None))
    assert begun == (result.preemptions.sum() > 0)
    monkeypatch.setattr(Scheduler, "__init__", caching_from_the_start)
    assert digest(simulate(remedied(seed, stride=None))) == digest(result)
