"""The laws of the simulator, each on random services: see `tests/support/services.py` for what is drawn."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import simpy
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import simulator
from simulator.kv import blocks_for
from simulator.policies.admission import PredictedKv
from simulator.routers import ROUTERS, Ask, Informed, make_router
from simulator.scheduler import Scheduler
from simulator.simulate import NS_PER_S, Result, Scenario, simulate
from simulator.step.stepplan import StepPlan
from simulator.workload import OpenLoop, Workload
from tests.support.cases import cost_model
from tests.support.digest import digest
from tests.support.remedies import random_remedied_scenario
from tests.support.services import random_scenario, random_speculative_scenario, same_way_out
from tests.support.watch import simulate_watched

SOURCE = Path(simulator.__file__).parent


def service(seed: int) -> Scenario:
    """vLLM's own rules, drafts, and all the remedies in turn."""
    return (random_scenario, random_speculative_scenario, random_remedied_scenario)[seed % 3](seed)


scenarios = st.integers(0, 1 << 32).map(service).map(same_way_out)
# No smaller seed is a simpler service: nothing to shrink.
law = settings(max_examples=60, derandomize=True, phases=[Phase.explicit, Phase.generate])


def finished_in_engine_ns(result: Result) -> np.ndarray:
    """When the engine was done with each request; beyond all time where it was not."""
    never = np.iinfo(np.int64).max
    return np.where(result.finish_ns < 0, never, result.finish_ns - result.scenario.cost.artifact.overheads.egress_ns)


@law
@given(scenarios)
def test_law_1_requests_are_conserved(scenario: Scenario) -> None:
    result = simulate(scenario)
    done = result.finish_ns >= 0
    assert (result.emitted_tokens[done] == result.requests.output_tokens[done]).all()
    assert (result.emitted_tokens[~done] < result.requests.output_tokens[~done]).all()
    if scenario.horizon_s is None:
        assert done.all()
    sent_ns = np.where(result.sent_ns < 0, np.iinfo(np.int64).max, result.sent_ns)
    for replica in range(scenario.num_replicas):
        here = result.replica == replica
        for sample, at_ns in enumerate(result.timeline.time_ns):
            inside = (sent_ns[here] <= at_ns).sum() - (finished_in_engine_ns(result)[here] <= at_ns).sum()
            assert result.timeline.running[sample, replica] + result.timeline.waiting[sample, replica] == inside


@law
@given(scenarios)
def test_law_2_free_and_held_blocks_are_all_usable_blocks(scenario: Scenario) -> None:
    def check(scheduler: Scheduler, plan: StepPlan) -> None:
        scheduler.check_blocks()
        assert scheduler.pool.free_blocks + scheduler.pool.held_blocks == scheduler.engine.usable_blocks
        assert scheduler.pool.free_blocks >= 0

    result = simulate_watched(scenario, check, check)
    assert result.timeline.kv_blocks.max(initial=0) <= scenario.engine.usable_blocks
    assert result.timeline.kv_blocks.min(initial=0) >= 0


@law
@given(scenarios)
def test_law_3_the_clock_never_goes_back(scenario: Scenario) -> None:
    instants = [0]
    step = simpy.Environment.step

    def watched_step(env: simpy.Environment) -> None:
        step(env)
        instants.append(env.now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simpy.Environment, "step", watched_step)
        result = simulate(scenario)
    assert instants == sorted(instants)
    assert all(type(instant) is int for instant in instants)
    for log in result.logs:
        ends = [end for _, piece in log.iter_ends() for end in piece.tolist()]
        assert ends == sorted(ends)
        assert all(end <= result.end_ns for end in ends)


@law
@given(scenarios)
def test_law_4_a_request_is_sent_scheduled_answered_and_finished_in_this_order(scenario: Scenario) -> None:
    result = simulate(scenario)
    overheads = scenario.cost.artifact.overheads
    stages = [result.sent_ns, result.scheduled_ns, result.first_token_ns, result.visible_ns, result.finish_ns]
    least_ns = [overheads.ingress_ns, overheads.egress_ns + 1, 0, 0]
    for i, (earlier, later) in enumerate(pairwise(stages)):
        both = (earlier >= 0) & (later >= 0)
        assert (later[both] - earlier[both] >= least_ns[i]).all()
    first_or_visible = [stage for stage in stages if stage is not result.visible_ns]
    for earlier, later in pairwise(first_or_visible):
        assert (earlier[later >= 0] >= 0).all()
    if isinstance(scenario.workload.loop, OpenLoop):
        sent = result.sent_ns >= 0
        assert (result.sent_ns[sent] == result.requests.arrival_ns[sent]).all()


@law
@given(scenarios)
def test_law_5_token_budget_and_seats_are_never_exceeded(scenario: Scenario) -> None:
    engine = scenario.engine

    def check(scheduler: Scheduler, plan: StepPlan) -> None:
        assert plan.tokens <= engine.max_num_scheduled_tokens <= engine.max_num_batched_tokens
        assert len(scheduler.running) <= engine.max_num_seqs
        assert plan.decode_seqs + len(plan.chunks) <= engine.max_num_seqs
        for _, tokens, end in plan.chunks:
            assert 1 <= tokens <= end <= engine.max_model_len
            assert tokens <= (engine.long_prefill_token_threshold or tokens)

    simulate_watched(scenario, after_schedule=check)


@law
@given(scenarios)
def test_law_6a_whoever_waits_does_not_fit(scenario: Scenario) -> None:
    engine = scenario.engine

    def check(scheduler: Scheduler, plan: StepPlan) -> None:
        budget = engine.max_num_scheduled_tokens - plan.tokens
        if plan.preempted or budget == 0 or len(scheduler.running) == engine.max_num_seqs or not len(scheduler.waiting):
            return
        head = scheduler.waiting.peek()
        tokens = head.num_tokens
        if tokens == 1 and engine.speculative is not None:
            return  # it may wait for room for its padding
        if engine.long_prefill_token_threshold:
            tokens = min(tokens, engine.long_prefill_token_threshold)
        if tokens > budget and not engine.enable_chunked_prefill:
            return
        lookahead = 0 if engine.speculative is None else engine.speculative.num_lookahead_tokens
        wanted = min(min(tokens, budget) + lookahead, engine.max_model_len)
        if engine.scheduler_reserve_full_isl:
            wanted = max(wanted, head.num_tokens)
        headroom = int(engine.watermark * engine.num_gpu_blocks) if scheduler.running else 0
        forecast = PredictedKv(engine, scenario.policy.overcommit)
        if scenario.policy.admission == "predicted_kv" and not forecast.admits(head, scheduler.running, plan.step - 1):
            return
        assert blocks_for(wanted, engine.block_size) + headroom > scheduler.pool.free_blocks

    simulate_watched(scenario, after_schedule=check)


@law
@given(scenarios, st.integers(1, 2_000))
def test_law_6b_an_engine_with_requests_works_without_a_pause(scenario: Scenario, step_ns: int) -> None:
    result = simulate(replace(scenario, cost=cost_model({"one": step_ns}), num_replicas=1))
    ends = np.array([end for _, piece in result.logs[0].iter_ends() for end in piece.tolist()], np.int64)
    inside = np.searchsorted(np.sort(result.sent_ns[result.sent_ns >= 0]), ends, side="right")
    inside -= np.searchsorted(np.sort(finished_in_engine_ns(result)), ends, side="right")
    pauses = np.diff(ends)[inside[:-1] > 0]
    # Without a row to compute (all are sure to finish in the step before), an asynchronous step takes no time.
    assert set(pauses.tolist()) <= ({0, step_ns} if scenario.engine.async_scheduling else {step_ns})


@law
@given(scenarios)
def test_law_7_progress_is_lost_only_by_preemption(scenario: Scenario) -> None:
    computed: Counter[int] = Counter()

    def count(scheduler: Scheduler, plan: StepPlan) -> None:
        for sequence, chunk_tokens, chunk_end in plan.chunks:
            # Beside decodes with drafts, a prompt of one token is padded to their length.
            padded = sequence.num_tokens == 1
            tokens, end = (1, 1) if padded else (chunk_tokens, chunk_end)
            computed[sequence.row] += tokens
            if sequence.preemptions == 0:
                assert computed[sequence.row] == end <= sequence.prompt_tokens

    result = simulate_watched(scenario, after_schedule=count)
    for row in np.flatnonzero(result.preemptions == 0).tolist():
        assert computed[row] == result.requests.prompt_tokens[row] or result.first_token_ns[row] < 0
    for log in result.logs:
        next_token: Counter[int] = Counter()
        segments = np.column_stack([log.segments, log.last_tokens])
        for row, token, _, _, last_token in segments[np.lexsort((segments[:, 2], segments[:, 0]))].tolist():
            assert token == next_token[row] + 1
            next_token[row] = last_token


@law
@given(scenarios)
def test_law_8a_same_seed_same_bytes(scenario: Scenario) -> None:
    assert digest(simulate(scenario)) == digest(simulate(scenario))


def test_law_8b_same_seed_same_bytes_in_another_process() -> None:
    program = "from tests.support.digest import main; main()"
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            cwd=SOURCE.parent,
            check=True,
            capture_output=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1
    assert len(digests.pop()) > 64


@law
@given(scenarios, st.integers(2, 600))
def test_law_9_stride_never_changes_a_result(scenario: Scenario, stride: int) -> None:
    reference = digest(simulate(replace(scenario, stride=1)))
    assert digest(simulate(replace(scenario, stride=stride))) == reference
    assert digest(simulate(scenario)) == reference


@law
@given(scenarios, st.floats(0.02, 0.98), st.integers(0, 1 << 32))
def test_law_10a_the_past_knows_nothing_of_lengths_to_come(scenario: Scenario, share: float, seed: int) -> None:
    whole = simulate(replace(scenario, horizon_s=None))
    past = replace(scenario, horizon_s=max(1, round(whole.end_ns * share)) / NS_PER_S)
    before = simulate(past)
    requests = before.requests
    room = np.minimum(requests.max_tokens, scenario.engine.max_model_len - requests.prompt_tokens)
    others = np.random.default_rng(seed).integers(before.emitted_tokens + 1, np.maximum(room, before.emitted_tokens + 1) + 1)
    unfinished = before.finish_ns < 0
    changed = replace(requests, output_tokens=np.where(unfinished, others, requests.output_tokens))
    after = simulate(replace(past, workload=Workload(changed, scenario.workload.loop)))
    assert digest(after) == digest(before)


def test_law_10b_the_sample_changes_lengths_that_matter() -> None:
    earlier = 0
    for seed in range(20):
        scenario = replace(random_scenario(seed), horizon_s=None)
        requests = scenario.workload.requests
        shorter = replace(requests, output_tokens=np.ones(len(requests), np.int64))
        changed = replace(scenario, workload=Workload(shorter, scenario.workload.loop))
        earlier += simulate(changed).end_ns < simulate(scenario).end_ns
    assert earlier >= 15


class Load:
    """All that a router may see."""

    __slots__ = ("index", "outstanding")

    def __init__(self, index: int, outstanding: int) -> None:
        self.index, self.outstanding = index, outstanding

    def context_tokens(self) -> int:
        return (50, 30, 70)[self.index]

    def predicted_tokens(self) -> int:
        return (700, 900, 500)[self.index]

    def request_counts(self) -> tuple[int, int]:
        return ((0, 9), (1, 4), (2, 0))[self.index]


CHOICES = {
    "least_requests": {1},
    "round_robin": {0, 1, 2},
    "random": {0, 1, 2},
    "power_of_two": {1, 2},  # two different ones are drawn, so the worst never wins
    "least_tokens": {1},
    "length_predictive": {2},
    "prefix_affine": {1},
    "vllm": {0, 1, 2},
}


@pytest.mark.parametrize("name", sorted(ROUTERS))
def test_law_10c_a_router_sees_loads_alone(name: str) -> None:
    router = make_router(name, seed=1)
    loads = [Load(0, 3), Load(1, 1), Load(2, 2)]
    if isinstance(router, Informed):
        router.learn(loads)
    chosen = {router.route(loads, Ask(row, prompt_tokens=10, predicted_tokens=100)) for row in range(50)}
    assert chosen == CHOICES[name]


ENGINE_MODULES = [
    "step/waiting.py",
    "kv.py",
    "prefix/cache.py",
    "prefix/content.py",
    "step/decode.py",
    "step/clock.py",
    "replica.py",
    "engine.py",
]
POLICY_MODULES = ["policies/policy.py", "policies/preemption.py", "policies/admission.py", "step/occupancy.py"]
ROUTER_MODULES = [f"routers/{path.name}" for path in sorted((SOURCE / "routers").glob("*.py"))]


def readers_of_lengths(module: str) -> set[str]:
    """Functions of a module that touch an attribute with a request's length to come."""
    tree = ast.parse((SOURCE / module).read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {
        function.name
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr in {"output_tokens", "visible_token"}
    }


@pytest.mark.parametrize("module", ENGINE_MODULES + POLICY_MODULES + ROUTER_MODULES)
def test_law_10d_lengths_to_come_are_unknown_to(module: str) -> None:
    assert readers_of_lengths(module) == set()


def test_law_10e_the_scheduler_reads_them_in_its_bookkeeping_alone() -> None:
    # What was emitted in steps already planned, and in which step a sequence will turn out to be finished.
    assert readers_of_lengths("scheduler.py") == {"_preempt", "_fall_behind", "_finish"}
    assert readers_of_lengths("step/foresight.py") == {"_foresee_finish"}
    assert readers_of_lengths("step/sequence.py") == {"__init__", "sure_to_finish"}
