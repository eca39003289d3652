"""Routers, each by its rule."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest

from simulator.errors import UserError
from simulator.prefix.content import Contents, PromptContent
from simulator.routers import Ask, make_router
from simulator.routers.prefix import BOUND
from simulator.simulate import Scenario, simulate
from simulator.workload import OpenLoop, Workload
from tests.support.cases import cost_model
from tests.support.prefixes import random_prefix_scenario
from tests.support.remedies import random_remedied_scenario


@dataclass
class Load:
    index: int
    outstanding: int = 0
    tokens: int = 0
    predicted: int = 0
    counts: tuple[int, int] = (0, 0)

    def context_tokens(self) -> int:
        return self.tokens

    def predicted_tokens(self) -> int:
        return self.predicted

    def request_counts(self) -> tuple[int, int]:
        return self.counts


def ask(row: int = 0) -> Ask:
    return Ask(row, prompt_tokens=100, predicted_tokens=1000)


def test_an_unknown_router_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"router 'nearest' is not known; choose one of least_requests, .*, vllm"):
        make_router("nearest", 0)


def test_power_of_two_draws_pairs_evenly_and_by_row() -> None:
    idle = [Load(index) for index in range(4)]
    router = make_router("power_of_two", 3)
    chosen = [router.route(idle, ask(row)) for row in range(4000)]
    assert all(900 < times < 1100 for times in Counter(chosen).values())
    again = make_router("power_of_two", 3)
    backwards = [again.route(idle, ask(row)) for row in reversed(range(4000))]
    assert backwards[::-1] == chosen
    busy = [Load(0, outstanding=9), Load(1), Load(2), Load(3)]
    assert {router.route(busy, ask(row)) for row in range(1000)} == {1, 2, 3}


def test_vllm_balances_by_told_counts_and_what_it_sent_since() -> None:
    """The scan of vLLM 0.26 `DPLBAsyncMPClient.get_core_engine_for_request`, worked out by hand."""
    loads = [Load(0, counts=(0, 5)), Load(1, counts=(1, 1)), Load(2, counts=(0, 2))]
    router = make_router("vllm", 0)
    router.learn(loads)
    # scores 5, 5, 2; whoever is chosen has 4 more
    assert router.route(loads, ask()) == 2  # 5, 5, 6
    loads[2].counts = (50, 50)  # not told yet
    assert router.route(loads, ask()) == 1  # a tie, and the scan begins at 1: 5, 9, 6
    assert router.route(loads, ask()) == 0  # 9, 9, 6
    assert router.route(loads, ask()) == 2
    router.learn(loads)
    assert {router.route(loads, ask()) for _ in range(2)} == {0, 1}


def test_vllm_hears_counts_that_did_not_change_only_every_five_seconds() -> None:
    loads = [Load(0, counts=(0, 1)), Load(1, counts=(0, 3))]
    router = make_router("vllm", 0)
    router.learn(loads)
    assert [router.route(loads, ask()), router.route(loads, ask())] == [0, 1]  # 5, 7
    for _ in range(49):
        router.learn(loads)
    assert router.route(loads, ask()) == 0  # 9, 7
    assert router.route(loads, ask()) == 1  # 9, 11
    router.learn(loads)
    assert router.route(loads, ask()) == 0  # 1, 3 again


def asks(*prompts: list[tuple[int, int]]) -> list[Ask]:
    """Requests whose prompts are these (content id, tokens) and 40 tokens of their own; each content comes up again somewhere."""
    again = [[segment] for prompt in prompts for segment in prompt]
    contents = Contents(PromptContent.build([*prompts, *again]))
    return [Ask(row, sum(n for _, n in prompt) + 40, 1000, contents.of(row)) for row, prompt in enumerate(prompts)]


def test_a_prompt_goes_where_its_longest_beginning_was_sent() -> None:
    loads = [Load(0, outstanding=5), Load(1, outstanding=4), Load(2, outstanding=6)]
    router = make_router("prefix_affine", 0)
    first, longer, short, other, longest = asks([(1, 160)], [(1, 160), (2, 80)], [(1, 15)], [(3, 160)], [(3, 320), (4, 80)])
    assert router.route(loads, first) == 1, "nobody knows it: the least loaded"
    loads[1].outstanding = 6
    assert router.route(loads, longer) == 1, "its beginning was sent there, though others have less to do"
    assert router.route(loads, short) == 0, "less than a block in common"
    assert router.route(loads, other) == 0
    loads[0].outstanding = 8
    assert router.route(loads, longest) == 0
    loads[0].outstanding = 12
    assert router.route(loads, other) == 1, "the one that knows it has more than 1.25 times its share"
    assert router.route(loads[:1] + loads[2:], first) == 1, "the one that knows it is gone"
    loads[1].outstanding = 7
    assert router.route(loads, ask()) == 2


def test_what_was_sent_long_ago_is_forgotten_from_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulator.routers.prefix.MOST_BLOCKS", 12)
    first, second, all_of_it = asks([(1, 160)], [(2, 128)], [(3, 192)])
    idle, busy = [Load(0), Load(1, outstanding=1)], [Load(0, outstanding=1), Load(1)]
    for then, home in ((second, 0), (all_of_it, 1)):  # 8 blocks leave the first 4 of the 10 before, 12 leave none
        router = make_router("prefix_affine", 0)
        assert [router.route(idle, first), router.route(idle, then)] == [0, 0]
        assert router.route([*busy, Load(2, outstanding=1)], first) == home


def test_one_system_prompt_for_all_does_not_send_everything_to_one_place() -> None:
    loads = [Load(index) for index in range(5)]
    router = make_router("prefix_affine", 0)
    [one] = asks([(1, 160)])
    for row in range(1000):
        loads[router.route(loads, one)].outstanding += 1
        assert max(load.outstanding for load in loads) <= BOUND * (row + 1) / 5 + 1


def test_conversations_stay_where_their_past_is_cached() -> None:
    """More of every prompt is found than where turns are sent to the least loaded replica."""
    found = Counter[str]()
    for seed in range(0, 80, 4):
        scenario = replace(random_prefix_scenario(seed), num_replicas=3, horizon_s=None)
        for router in ("least_requests", "prefix_affine"):
            found[router] += int(simulate(replace(scenario, router=router)).cached_tokens.sum())
    assert found["prefix_affine"] > 1.1 * found["least_requests"]


@pytest.mark.parametrize("name", ["least_tokens", "length_predictive"])
def test_token_counting_spreads_work_better_than_turns(name: str) -> None:
    """Long answers at every second place: turns send them all to one replica."""
    n = 200
    requests = random_remedied_scenario(1).workload.requests.take(np.zeros(n, np.int64))
    output = np.where(np.arange(n) % 2 == 0, 400, 4)
    every_us = np.arange(n) * 35_000
    requests = replace(
        requests, arrival_ns=every_us, output_tokens=output, max_tokens=output, predicted_tokens=output, visible_token=output * 0 + 1
    )
    engine = random_remedied_scenario(1).engine.model_copy(
        update={"max_num_seqs": 4, "max_model_len": 1000, "num_gpu_blocks": 10_000, "max_num_batched_tokens": 2000}
    )
    scenario = Scenario(Workload(requests, OpenLoop()), engine, cost_model({"one": 1_000}), num_replicas=2, router=name)
    turns = simulate(replace(scenario, router="round_robin"))
    assert np.mean(simulate(scenario).finish_ns - every_us) < 0.8 * np.mean(turns.finish_ns - every_us)
