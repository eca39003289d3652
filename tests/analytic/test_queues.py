"""Degenerate engines against queueing theory, within 99.9 % confidence intervals of independent runs."""

from __future__ import annotations

from collections.abc import Callable
from math import factorial

import numpy as np
import pytest
from scipy import stats

from simulator.cost import CostModel
from simulator.simulate import NS_PER_S, Result
from tests.support.cases import cost_model
from tests.support.queues import STEP_NS, Interval, engine, poisson_workload, serve

Lengths = Callable[[np.random.Generator, int], np.ndarray]

MEAN_TOKENS = 500
SERVICE_S = MEAN_TOKENS * STEP_NS / NS_PER_S
RUNS = 12
CONSTANT_STEP = CostModel.constant(STEP_NS)


def constant(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.full(n, MEAN_TOKENS)


def exponential(rng: np.random.Generator, n: int) -> np.ndarray:
    """Geometric: exponential on the grid of the steps."""
    return rng.geometric(1 / MEAN_TOKENS, n)


def two_lengths(rng: np.random.Generator, n: int) -> np.ndarray:
    """One in ten is long: a squared coefficient of variation of 2.2."""
    return np.where(rng.random(n) < 0.1, 2750, 250)


def settled(values: np.ndarray) -> float:
    """Mean without the first fifth, in which the queue fills."""
    return float(values[len(values) // 5 :].mean())


def waits_s(result: Result) -> np.ndarray:
    return (result.scheduled_ns - result.sent_ns) / NS_PER_S


def sojourns_s(result: Result) -> np.ndarray:
    return (result.finish_ns - result.sent_ns) / NS_PER_S


def runs(seed: int, n: int, lengths: Lengths, load: float, seats: int, cost: CostModel = CONSTANT_STEP) -> list[Result]:
    """Independent runs of `n` requests at `load` Erlang."""
    rngs = [np.random.default_rng([seed, run]) for run in range(RUNS)]
    return [serve(poisson_workload(rng, load / SERVICE_S, lengths(rng, n)), engine(seats), cost) for rng in rngs]


@pytest.mark.parametrize("async_scheduling", [False, True])
@pytest.mark.parametrize("lengths", [constant, exponential, two_lengths])
def test_one_seat_follows_lindleys_recursion_to_the_nanosecond(lengths: Lengths, async_scheduling: bool) -> None:
    rng = np.random.default_rng(1)
    workload = poisson_workload(rng, 0.9 / SERVICE_S, lengths(rng, 1000))
    result = serve(workload, engine(1, async_scheduling=async_scheduling), CONSTANT_STEP)
    free_ns, starts_ns = 0, []
    for arrival_ns, tokens in zip(workload.requests.arrival_ns.tolist(), workload.requests.output_tokens.tolist(), strict=True):
        starts_ns.append(max(arrival_ns, free_ns))
        free_ns = starts_ns[-1] + tokens * STEP_NS
    assert result.scheduled_ns.tolist() == starts_ns
    assert result.end_ns == free_ns


def test_m_m_1_waits_and_sojourns() -> None:
    load = 0.6
    results = runs(11, 3000, exponential, load, seats=1)
    waits = Interval.of([settled(waits_s(result)) for result in results])
    assert waits.agrees_with(load * SERVICE_S / (1 - load), within=0.18)
    # Every 40th of a run: so far apart that they are as good as independent.
    sojourns = np.concatenate([sojourns_s(result)[600::40] for result in results])
    assert stats.kstest(sojourns, stats.expon(scale=SERVICE_S / (1 - load)).cdf).pvalue > 0.001


@pytest.mark.parametrize("lengths", [constant, two_lengths])
def test_m_g_1_mean_wait_is_that_of_pollaczek_and_khinchine(lengths: Lengths) -> None:
    load = 0.5
    squared_cv = {constant: 0.0, two_lengths: 0.9 * 0.5**2 + 0.1 * 5.5**2 - 1}[lengths]
    waits = Interval.of([settled(waits_s(result)) for result in runs(13, 2500, lengths, load, seats=1)])
    assert waits.agrees_with(load / (1 - load) * (1 + squared_cv) / 2 * SERVICE_S, within=0.25)


def test_m_m_c_waits_are_those_of_erlang_c() -> None:
    load, seats = 2.8, 4
    results = runs(14, 2500, exponential, load, seats)
    last = load**seats / factorial(seats) * seats / (seats - load)
    probability = last / (sum(load**k / factorial(k) for k in range(seats)) + last)
    # A request that finds a seat still waits for the end of the step under way, less than one step.
    waiting = Interval.of([settled(waits_s(result) >= STEP_NS / NS_PER_S) for result in results])
    assert waiting.agrees_with(probability, within=0.1)
    waits = Interval.of([settled(waits_s(result)) for result in results])
    assert waits.agrees_with(probability * SERVICE_S / (seats - load), within=0.3)


@pytest.mark.parametrize("lengths", [constant, two_lengths])
def test_m_g_infinity_number_in_system_is_poisson_whatever_the_lengths(lengths: Lengths) -> None:
    load, longest_s = 5.0, {constant: 0.5, two_lengths: 2.75}[lengths]
    rng = np.random.default_rng(15)
    workload = poisson_workload(rng, load / SERVICE_S, lengths(rng, 12_000))
    # Samples further apart than the longest service are independent.
    result = serve(workload, engine(1024), CONSTANT_STEP, sample_s=longest_s + 0.01)
    whole = (result.timeline.time_ns > 5 * NS_PER_S) & (result.timeline.time_ns < workload.requests.arrival_ns[-1])
    inside = (result.timeline.running + result.timeline.waiting)[whole, 0]
    assert len(inside) >= 400
    cells = np.arange(1, 10)
    observed = np.bincount(np.searchsorted(cells, inside), minlength=10)
    expected = np.diff([0.0, *stats.poisson(load).cdf(cells), 1.0]) * len(inside)
    assert stats.chisquare(observed, expected).pvalue > 0.001
    assert stats.norm.cdf((inside.mean() - load) / np.sqrt(load / len(inside))) == pytest.approx(0.5, abs=0.4995)


@pytest.mark.parametrize("lengths", [constant, exponential, two_lengths])
def test_processor_sharing_mean_sojourn_whatever_the_lengths(lengths: Lengths) -> None:
    """A step takes as long as its tokens are many, so each of n sequences gets 1/n of the engine."""
    load = 0.5
    results = runs(16, 1500, lengths, load, seats=1024, cost=cost_model({"tokens": STEP_NS}))
    sojourns = Interval.of([settled(sojourns_s(result)) for result in results])
    assert sojourns.agrees_with(SERVICE_S / (1 - load), within=0.15)


def test_processor_sharing_is_fair() -> None:
    """A request's mean sojourn is proportional to its length."""
    load = 0.5
    results = runs(17, 1500, two_lengths, load, seats=1024, cost=cost_model({"tokens": STEP_NS}))
    for tokens in (250, 2750):
        of_length = [sojourns_s(result)[300:][result.requests.output_tokens[300:] == tokens] for result in results]
        sojourns = Interval.of([float(values.mean()) for values in of_length])
        assert sojourns.agrees_with(tokens * STEP_NS / NS_PER_S / (1 - load), within=0.15)


def on_the_grid(seed: int) -> Result:
    """All that happens, happens at the end of a step of the grid, and every such instant is sampled."""
    rng = np.random.default_rng([18, seed])
    workload = poisson_workload(rng, 3.2 / SERVICE_S, exponential(rng, 300))
    workload.requests.arrival_ns[:] -= workload.requests.arrival_ns % STEP_NS
    return serve(workload, engine(4), CONSTANT_STEP, sample_s=STEP_NS / NS_PER_S)


@pytest.mark.parametrize("seed", range(3))
def test_littles_law_holds_exactly_on_a_finished_run(seed: int) -> None:
    result = on_the_grid(seed)
    timeline = result.timeline
    assert timeline.running.sum() * STEP_NS == (result.finish_ns - result.scheduled_ns).sum()
    assert timeline.waiting.sum() * STEP_NS == (result.scheduled_ns - result.sent_ns).sum()
    assert (timeline.running + timeline.waiting).sum() * STEP_NS == (result.finish_ns - result.sent_ns).sum()


def test_littles_law_holds_for_time_averages() -> None:
    rng = np.random.default_rng(19)
    rate_per_s = 3.0 / SERVICE_S
    result = serve(poisson_workload(rng, rate_per_s, two_lengths(rng, 6000)), engine(4), CONSTANT_STEP, sample_s=0.0503)
    timeline, requests = result.timeline, result.requests
    rates = len(requests) / (result.end_ns / NS_PER_S)
    assert timeline.running.mean() == pytest.approx(rates * (sojourns_s(result) - waits_s(result)).mean(), rel=0.005)
    assert timeline.waiting.mean() == pytest.approx(rates * waits_s(result).mean(), rel=0.01)
