"""Queues whose customers leave, against theory: Erlang-A, and what retries and rate limits do to a load."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator.clients.attempts import Outcome
from simulator.clients.patience import ClientConfig, Patience, Retry
from simulator.clients.ratelimit import TokenBucket
from simulator.cost import CostModel
from simulator.reporting.summary import summary
from simulator.simulate import NS_PER_S, Result, Scenario, simulate
from tests.support.queues import STEP_NS, Interval, engine, poisson_workload

MEAN_TOKENS = 500
SERVICE_S = MEAN_TOKENS * STEP_NS / NS_PER_S
RUNS = 12


def run(seed: int, n: int, load: float, seats: int, clients: ClientConfig) -> Result:
    rng = np.random.default_rng([40, seed])
    workload = poisson_workload(rng, load / SERVICE_S, rng.geometric(1 / MEAN_TOKENS, n))
    return simulate(Scenario(workload, engine(seats), CostModel.constant(STEP_NS), seed=seed, clients=clients, sample_s=0.0503))


def erlang_a(load: float, seats: int, patience: float) -> tuple[float, float]:
    """(chance to leave, mean number waiting) of M/M/c+M with mean service 1: its birth-death chain, cut where it is empty."""
    levels = np.arange(400)
    deaths = np.minimum(levels, seats) + np.maximum(levels - seats, 0) / patience
    weights = np.cumprod(np.concatenate([[1.0], load / deaths[1:]]))
    waiting = float((weights * np.maximum(levels - seats, 0)).sum() / weights.sum())
    return waiting / patience / load, waiting


@pytest.mark.parametrize(("load", "seats", "patience"), [(4.5, 4, 1.0), (2.8, 4, 2.0)])
def test_users_that_leave_the_queue_are_those_of_erlang_a(load: float, seats: int, patience: float) -> None:
    """Also beyond saturation, where without patience no queue would be stable."""
    clients = ClientConfig(patience=Patience(until="ttft", mean_s=patience * SERVICE_S))
    results = [run(seed, 2500, load, seats, clients) for seed in range(RUNS)]
    left, waiting = erlang_a(load, seats, patience)
    shares = [float((result.attempts.outcome[500:] == Outcome.ABORTED).mean()) for result in results]
    assert Interval.of(shares).agrees_with(left, within=0.2)
    quarters = [result.timeline.waiting[len(result.timeline.waiting) // 5 : -50].mean() for result in results]
    assert Interval.of(quarters).agrees_with(waiting, within=0.25)


def test_a_timeout_without_a_queue_cuts_the_exponential_service() -> None:
    """Alone on its seat a request is aborted if its service is longer: with P(S ≥ t), and wastes what it emitted until then."""
    timeout_s = 0.8
    results = [run(seed, 4000, 3.0, 512, ClientConfig(timeout_s=timeout_s)) for seed in range(RUNS)]
    shares = [summary(result)["aborted_share"] for result in results]
    assert Interval.of(shares).agrees_with(np.exp(-timeout_s / SERVICE_S), within=0.1)
    # Of the tokens emitted, E[S; S < t] were of use: the rest of E[min(S, t)] was in vain.
    x = timeout_s / SERVICE_S
    useful = 1 - np.exp(-x) * (1 + x)
    wasted = [summary(result)["wasted_token_share"] for result in results]
    assert Interval.of(wasted).agrees_with(1 - useful / (1 - np.exp(-x)), within=0.1)


def test_attempts_are_a_geometric_sum_where_chance_alone_makes_them_fail() -> None:
    """Patient clients, 429 at random points of a Poisson stream: a share p is refused again and again, up to three times."""
    limit = ClientConfig(rate_limit=TokenBucket(rate=4.0, burst=1), retry=Retry(max_attempts=1))
    result = run(1, 20_000, 4.0, 512, limit)
    rate = 4.0 / SERVICE_S
    # GCRA without tolerance passes one, then is deaf for 1 / 4 s: a counter of type I, of rate 1 / (1/4 + 1/rate).
    passed = 1 / (0.25 + 1 / rate) / rate
    assert summary(result)["rejected_share"] == pytest.approx(1 - passed, rel=0.03)
    again = replace(result.scenario, clients=ClientConfig(rate_limit=TokenBucket(rate=100.0, burst=50), retry=Retry()))
    assert summary(simulate(again))["attempts_per_request"] == 1.0
