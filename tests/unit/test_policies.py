"""Policies beyond vLLM's: what each is for, and how a config is refused."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.config import load
from simulator.engine import EngineConfig
from simulator.errors import UserError
from simulator.policies.fairness import fairness, slowdowns
from simulator.policies.policy import Policy
from simulator.request import RequestTable
from simulator.simulate import Result, Scenario, simulate
from simulator.workload import Workload
from tests.support.cases import cost_model

STEP_NS = 1_000


def serve(
    output_tokens: list[int],
    policy: Policy,
    *,
    predicted: list[int] | None = None,
    seats: int = 8,
    blocks: int = 10_000,
    arrivals: list[int] | None = None,
) -> Result:
    """Prompts of one token, one block a token, a step a microsecond; all sent at once unless `arrivals` says when."""
    n = len(output_tokens)
    output = np.array(output_tokens)
    requests = RequestTable.build(
        np.zeros(n, np.int64) if arrivals is None else np.array(arrivals),
        np.ones(n, np.int64),
        output,
        max_tokens=output + 1000,
        predicted_tokens=output if predicted is None else np.array(predicted),
    )
    engine = EngineConfig(
        max_model_len=min(blocks, 2000), max_num_seqs=seats, block_size=1, num_gpu_blocks=blocks + 1, async_scheduling=False
    )
    return simulate(Scenario(Workload(requests), engine, cost_model({"one": STEP_NS}), policy=policy))


def finish_order(result: Result) -> list[int]:
    return np.argsort(result.finish_ns, kind="stable").tolist()


def test_shortest_predicted_first_goes_by_the_prediction() -> None:
    policy = Policy(queue="shortest_predicted_first")
    assert finish_order(serve([30, 10, 20], policy, seats=1)) == [1, 2, 0]
    assert finish_order(serve([30, 10, 20], policy, seats=1, predicted=[10, 20, 30])) == [0, 1, 2]
    assert finish_order(serve([30, 10, 20], Policy(), seats=1)) == [0, 1, 2]


def test_aging_lets_nobody_wait_forever() -> None:
    long_and_many_short = [5, 50] + [10] * 30
    arrivals = [0, 0] + [1 + i * 8 * STEP_NS for i in range(30)]
    starved = serve(long_and_many_short, Policy(queue="shortest_predicted_first"), seats=1, arrivals=arrivals)
    aged = serve(long_and_many_short, Policy(queue="shortest_predicted_first", aging_tokens_per_s=1e6), seats=1, arrivals=arrivals)
    assert finish_order(starved)[-1] == 1
    assert finish_order(aged).index(1) < 8


def test_shortest_remaining_first_counts_what_a_preempted_request_has() -> None:
    """Two long answers crowd each other out; the one put back has few tokens left, and a new one of 15 waits beside it."""
    kwargs = {"seats": 2, "blocks": 100, "arrivals": [0, 0, 10 * STEP_NS]}
    by_whole = serve([60, 60, 15], Policy(queue="shortest_predicted_first"), **kwargs)
    by_rest = serve([60, 60, 15], Policy(queue="shortest_remaining_first"), **kwargs)
    assert by_whole.preemptions.sum() >= 1
    assert finish_order(by_whole) == [0, 2, 1]
    assert finish_order(by_rest) == [0, 1, 2]


@pytest.mark.parametrize(("rule", "victim"), [("vllm", 2), ("longest_remaining", 0), ("most_blocks", 1), ("fewest_blocks", 2)])
def test_who_makes_room(rule: str, victim: int) -> None:
    """Three run when the 60 blocks are gone: the first has 90 tokens to go, the second holds as much, the third began later."""
    result = serve([95, 60, 40], Policy(preemption=rule), blocks=100, arrivals=[0, 0, 20 * STEP_NS])
    first = [row for row in range(3) if result.preemptions[row]]
    assert victim in first


def test_predicted_growth_holds_back_who_would_crowd_out_others() -> None:
    crowded = serve([60, 60, 60], Policy(), blocks=130)
    held = serve([60, 60, 60], Policy(admission="predicted_kv"), blocks=130)
    assert crowded.preemptions.sum() > 0
    assert held.preemptions.sum() == 0
    assert held.held_back.tolist() == [False, False, True]
    assert not crowded.held_back.any()
    lavish = serve([60, 60, 60], Policy(admission="predicted_kv", overcommit=2.0), blocks=130)
    assert not lavish.held_back.any()


def test_slowdown_is_one_alone_and_even_slowdowns_are_fair() -> None:
    alone = serve([50], Policy())
    assert slowdowns(alone).values_s == pytest.approx([1.0])
    assert fairness(alone)["slowdown_fairness"] == pytest.approx(1.0)
    in_turn = serve([50, 50, 50, 50], Policy(), seats=1)
    assert slowdowns(in_turn).values_s == pytest.approx([1, 2, 3, 4], rel=0.05)
    assert fairness(in_turn)["slowdown_fairness"] == pytest.approx(100 / (4 * 30), rel=0.02)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["policy.queue=shortest_predicted_first"], "policy goes by predicted lengths: give predictor"),
        (["cluster.router=length_predictive"], "cluster.router length_predictive goes by predicted lengths: give predictor"),
        (["policy.queue=sjf"], "policy.queue: .*'shortest_predicted_first'"),
        (["policy.overcommit=2"], "overcommit changes nothing: admission is vllm"),
        (["policy.aging_tokens_per_s=2"], "aging_tokens_per_s changes nothing: queue is vllm"),
        (["predictor=oracle"], "predictor: unknown kind 'oracle'; valid: 'perfect', 'noisy', 'by_data_set'"),
        (["predictor={kind: noisy}"], "predictor.sigma: is missing"),
        (
            ["predictor=perfect", "policy.queue=shortest_predicted_first", "engine.scheduling_policy=priority"],
            "policy.queue shortest_predicted_first and engine.scheduling_policy priority exclude each other",
        ),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_in_a_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load("conf/simulate.yaml", overrides)
    assert "\n" not in str(caught.value)


def test_a_config_reaches_the_engines() -> None:
    options = ["predictor={kind: noisy, sigma: 0.3}", "policy.queue=shortest_remaining_first", "run.duration_s=20"]
    scenario = load("conf/simulate.yaml", options).scenario()
    assert scenario.policy == Policy(queue="shortest_remaining_first")
    requests = scenario.workload.requests
    assert (requests.predicted_tokens != requests.output_tokens).any()
    plain = load("conf/simulate.yaml", ["run.duration_s=20"]).scenario()
    assert (plain.workload.requests.predicted_tokens == plain.workload.requests.max_tokens).all()
