"""Speculation against what can be computed by hand: tokens of a step, and the time of an answer."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.request import RequestTable
from simulator.simulate import Result, Scenario, simulate
from simulator.speculation import Acceptance
from simulator.workload import OpenLoop, Workload
from tests.support.queues import STEP_NS, Interval

OUTPUT = 1000


def serve(acceptance: Acceptance, seed: int, method: str) -> Result:
    """Fifty answers of 1,000 tokens, on an engine with room for all of them, at a constant time a step."""
    rng = np.random.default_rng(seed)
    n = 50
    drafts = len(acceptance.rates)
    engine = EngineConfig(num_gpu_blocks=100_000, speculative={"method": method, "num_speculative_tokens": drafts})  # type: ignore[arg-type]
    requests = RequestTable.build(np.zeros(n, np.int64), rng.integers(1, 100, n), np.full(n, OUTPUT), max_tokens=np.full(n, 2 * OUTPUT))
    return simulate(Scenario(Workload(requests, OpenLoop()), engine, CostModel.constant(STEP_NS), seed=seed, acceptance=acceptance))


def verify_steps(result: Result) -> int:
    """Steps of all requests, less the one that ends each prompt."""
    _, _, first_step, last_step = result.logs[0].segments.T
    return int((last_step - first_step + 1).sum()) - len(result.requests)


@pytest.mark.parametrize(
    ("acceptance", "method"),
    [
        (Acceptance((0.81, 0.61, 0.45)), "eagle3"),
        (Acceptance((0.615, 0.464, 0.383), proposed=0.4), "ngram"),
        (Acceptance((0.81, 0.61, 0.45), correlation=0.3), "draft_model"),
        (Acceptance.of_length(2.5, 3), "eagle3"),
    ],
)
def test_tokens_of_a_step_are_those_of_the_closed_form(acceptance: Acceptance, method: str) -> None:
    runs = [serve(acceptance, seed, method) for seed in range(8)]
    # The last step of an answer is cut off at its end: half a step of 350 and more.
    means = [(result.emitted_tokens.sum() - len(result.requests)) / verify_steps(result) for result in runs]
    interval = Interval.of(means)
    slack = 0.004 * acceptance.tokens_per_step
    assert abs(interval.mean - acceptance.tokens_per_step) <= interval.half_width + slack
    assert interval.half_width <= 0.1 * acceptance.tokens_per_step


def test_an_answer_takes_as_many_steps_as_it_has_chunks() -> None:
    result = serve(Acceptance((0.81, 0.61, 0.45)), 0, "ngram")
    _, _, first_step, last_step = result.logs[0].segments.T
    chunks = np.bincount(result.logs[0].segments[:, 0], last_step - first_step + 1).astype(int)
    decode_ns = result.finish_ns - result.first_token_ns
    assert (decode_ns == (chunks - 1) * STEP_NS).all()
    assert (chunks < OUTPUT / 2).all()


def test_perfect_drafts_give_the_whole_speed_up_and_useless_ones_none() -> None:
    requests = RequestTable.build(np.zeros(1, np.int64), [10], [401])

    def finish_ns(acceptance: Acceptance | None) -> int:
        speculative = None if acceptance is None else {"method": "draft_model", "num_speculative_tokens": 3}
        engine = EngineConfig(num_gpu_blocks=100_000, async_scheduling=False, speculative=speculative)  # type: ignore[arg-type]
        scenario = Scenario(Workload(requests, OpenLoop()), engine, CostModel.constant(STEP_NS), acceptance=acceptance)
        return int(simulate(scenario).finish_ns[0])

    assert finish_ns(None) == 401 * STEP_NS
    assert finish_ns(Acceptance((0.0, 0.0, 0.0))) == 401 * STEP_NS
    assert finish_ns(Acceptance((1.0, 1.0, 1.0))) == 101 * STEP_NS
