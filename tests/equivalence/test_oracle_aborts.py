"""Aborts against the plain engine of `tests/reference`: every token, block and step, to the nanosecond."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest

from simulator.clients.patience import ClientConfig
from simulator.simulate import Result, Scenario, simulate
from simulator.workload import OpenLoop, Workload
from tests.reference.plain_engine import PlainEngine
from tests.support.cases import random_case

SEEDS = range(200)


@cache
def plain_run(seed: int) -> PlainEngine:
    case = random_case(seed)
    aborts_ns = case.requests.arrival_ns + timeout_ns(seed) + case.cost.artifact.overheads.ingress_ns
    return PlainEngine(case.requests, case.engine, case.cost, aborts_ns=aborts_ns.tolist()).run()


def timeout_ns(seed: int) -> int:
    case, rng = random_case(seed), np.random.default_rng([seed, 3])
    return int(case.cost.artifact.step["none"].gpu_ns["one"] * rng.integers(2, 120))


@pytest.mark.parametrize("stride", [1, None])
@pytest.mark.parametrize("seed", SEEDS)
def test_an_engine_whose_clients_time_out_is_the_plain_engine(seed: int, stride: int | None) -> None:
    case, timeout = random_case(seed), timeout_ns(seed)
    clients = ClientConfig(timeout_s=timeout / 1e9)
    result = simulate(Scenario(Workload(case.requests, OpenLoop()), case.engine, case.cost, stride=stride, sample_s=7e-6, clients=clients))
    assert_same_run(result, plain_run(seed), timeout)


def assert_same_run(result: Result, plain: PlainEngine, timeout: int) -> None:
    """Of clients that all wait `timeout` nanoseconds."""
    assert_same_tokens(result, plain)
    for row, request in enumerate(plain.requests):
        finish_ns = request.client_ns[-1] if request.finish_ns >= 0 else -1
        in_time = request.finish_ns >= 0 and finish_ns < request.arrival_ns + timeout
        assert result.finish_ns[row] == (finish_ns if in_time else -1)
        assert result.scheduled_ns[row] in (request.scheduled_ns, -1)
    [log] = result.logs
    ends = [end for _, piece in log.iter_ends() for end in piece.tolist()]
    assert ends == [step.end_ns for step in plain.steps][: len(ends)]
    at_ns = np.array([state[0] for state in plain.states])
    sampled = result.timeline.time_ns[result.timeline.time_ns <= result.end_ns]
    last = np.searchsorted(at_ns, sampled, side="right") - 1
    assert result.timeline.kv_blocks[: len(sampled), 0].tolist() == np.array(plain.states)[last, 1].tolist()


def assert_same_tokens(result: Result, plain: PlainEngine) -> None:
    """Those before the end of the run, which comes when the last client has its answer or has left: engines may not know of it yet."""
    for emitted, request in zip(result.emitted_tokens.tolist(), plain.requests, strict=True):
        before, upto = (sum(token_ns < end_ns for token_ns in request.token_ns) for end_ns in (result.end_ns, result.end_ns + 1))
        assert before <= emitted <= upto


def test_the_sample_holds_what_could_go_wrong() -> None:
    counts: Counter[str] = Counter()
    for seed in SEEDS:
        counts.update(plain_run(seed).counts)
    assert counts["aborts, running, tokens in flight: True"] >= 100
    assert counts["aborts, running, tokens in flight: False"] >= 100
    assert counts["aborts, waiting, tokens in flight: False"] >= 100
    assert counts["aborts, preempted, tokens in flight: False"] + counts["aborts, preempted, tokens in flight: True"] >= 30
