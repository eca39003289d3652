"""The laws where prompts and answers are computed on different replicas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from simulator.clients.attempts import Outcome
from simulator.kv import blocks_for
from simulator.scheduler import Scheduler
from simulator.simulate import Scenario, simulate
from simulator.step.steplog import ROW
from simulator.step.stepplan import StepPlan
from tests.support.combined import cached, drafting
from tests.support.fleets import split_scenario
from tests.support.watch import simulate_watched

# Every other one with prefix caching.
scenarios = st.integers(0, 1 << 32).map(lambda seed: cached(split_scenario, seed) if seed % 2 else split_scenario(seed))
speculative = st.integers(0, 1 << 32).map(lambda seed: drafting(split_scenario, seed))
law = settings(max_examples=40, derandomize=True, phases=[Phase.explicit, Phase.generate])


@law
@given(scenarios)
def test_requests_are_conserved_and_answered_where_decoding_is_done(scenario: Scenario) -> None:
    result = simulate(scenario)
    done = result.finish_ns >= 0
    assert (result.emitted_tokens[done] == result.requests.output_tokens[done]).all()
    assert (result.group[result.replica[done]] == 0).all()
    if scenario.horizon_s is None:
        if result.attempts is None:
            assert done.all()
        else:
            ended = result.attempts.gave_up | (result.attempts.outcome == Outcome.FINISHED)
            assert ended.sum() == len(scenario.workload.requests)


@law
@given(scenarios)
def test_a_first_token_comes_after_prompt_and_transfer(scenario: Scenario) -> None:
    result, split = simulate(scenario), scenario.disaggregation
    assert split is not None
    overheads = scenario.cost.artifact.overheads
    began = result.first_token_ns >= 0
    blocks = -(-result.requests.prompt_tokens // scenario.engine.block_size)
    transfer_ns = blocks * split.bytes_per_block / split.bandwidth_gb_per_s + split.latency_s * 1e9
    # In, out, in and out again; a step of work at either end.
    least_ns = 2 * (overheads.ingress_ns + overheads.egress_ns) + transfer_ns
    assert ((result.first_token_ns - result.sent_ns)[began] >= least_ns[began] - 1).all()


@law
@given(scenarios)
def test_blocks_seats_and_budget(scenario: Scenario) -> None:
    engine = scenario.engine

    def check_blocks(scheduler: Scheduler, plan: StepPlan) -> None:
        scheduler.check_blocks()

    def check(scheduler: Scheduler, plan: StepPlan) -> None:
        scheduler.check_blocks()
        assert plan.tokens <= engine.max_num_batched_tokens
        assert len(scheduler.running) <= engine.max_num_seqs
        for sequence, _, end in plan.chunks:
            assert sequence.blocks >= blocks_for(end, engine.block_size) or sequence.decoding

    simulate_watched(scenario, check, check_blocks)


@law
@given(scenarios)
def test_a_decode_replica_computes_a_prompt_again_only_after_a_preemption(scenario: Scenario) -> None:
    computed: dict[int, int] = {}

    def count(scheduler: Scheduler, plan: StepPlan) -> None:
        if not scheduler.log.discards:
            for sequence, tokens, _ in plan.chunks:
                if sequence.preemptions == 0:
                    computed[sequence.row] = computed.get(sequence.row, 0) + tokens

    simulate_watched(replace(scenario, clients=None), count)
    assert np.array(list(computed.values()), np.int64).tolist() == [1] * len(computed)


@law
@given(speculative)
def test_prompts_are_computed_without_drafts_and_answers_with_them(scenario: Scenario) -> None:
    result = simulate(scenario)
    verified = np.array([log.rows[:, ROW.index("verify_tokens")].sum() for log in result.logs], np.int64)
    prefill = result.group == len(scenario.groups) - 1
    assert (verified[prefill] == 0).all()
    asked = result.emitted_tokens > 2 + scenario.engine.depth  # beyond the first tokens, which no drafts come before
    sure = scenario.acceptance is not None and scenario.acceptance.proposed == 1
    assert not sure or not asked.any() or verified[~prefill].sum() > 0
    done = result.finish_ns >= 0
    assert (result.emitted_tokens[done] == result.requests.output_tokens[done]).all()


@law
@given(scenarios)
def test_a_prompt_holds_its_blocks_where_it_was_computed_until_they_are_sent(scenario: Scenario) -> None:
    schedulers: dict[int, Scheduler] = {}

    def look(scheduler: Scheduler, plan: StepPlan) -> None:
        schedulers[id(scheduler)] = scheduler
        assert scheduler.log.discards or not scheduler.pool.sending
        for sequence, blocks in scheduler.pool.sending.items():
            assert blocks >= blocks_for(sequence.prompt_tokens, scenario.engine.block_size)
            assert not sequence.running

    simulate_watched(replace(scenario, horizon_s=None, clients=None), look)
    assert all(scheduler.pool.held_blocks == 0 for scheduler in schedulers.values())
