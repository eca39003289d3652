"""The planner against services whose answer is known by arithmetic."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.errors import UserError
from simulator.metrics import Latency, SloOutcome
from simulator.plan import Plan, _fails_anyway, _settled, answer
from simulator.planning.candidate import Candidate, pooled
from simulator.planning.pool import Pool
from simulator.planning.search import Search
from simulator.planning.sizing import Demand
from simulator.planning.slo import Slos
from simulator.planning.steady import Period
from simulator.planning.trial import Question, Trial, run_trial
from simulator.report import summary, text
from simulator.workload import validate

OUTPUT_TOKENS = 100


def question(
    *,
    rate: float,
    slos: dict[str, object],
    step_ms: float,
    per_seq_ms: float = 0.0,
    arrivals: str = "uniform",
    seats: int = 256,
    **options: object,
) -> Question:
    """Requests of 100 output tokens each, one a 1/rate seconds."""
    cost = CostModel.constant(round(step_ms * 1e6), per_seq_ns=per_seq_ms * 1e6)
    workload = validate({
        "kind": "open",
        "arrivals": {"kind": arrivals, "rate": rate},
        "lengths": {"kind": "custom", "prompt": {"kind": "constant", "value": 16}, "output": {"kind": "constant", "value": OUTPUT_TOKENS}},
    })  # fmt: skip
    given = {"num_seeds": 2, "measured_s": 15.0, **options}
    return Question(
        workload=workload,
        engine=EngineConfig(num_gpu_blocks=100_000, max_num_seqs=seats),
        cost=cost,
        slos=Slos.model_validate(slos),
        **given,  # type: ignore[arg-type]
    )


def seats_question(**options: object) -> Question:
    """Each replica has 10 seats, and a request holds one for 100 steps of 10 ms: it serves 10 requests/s; 25 are asked for."""
    return question(rate=25, slos={"ttft_s": {"p99": 0.5}}, step_ms=10, seats=10, **options)


def speed_question(limit_ms: float = 11, **options: object) -> Question:
    """Steps take 5 ms + 1 ms a sequence. With x requests/s a replica, Little's law says x × 100 × (5 ms + 1 ms × running) = running."""
    return question(rate=18, slos={"tpot_ms": {"p99": limit_ms}}, step_ms=5, per_seq_ms=1, **options)


@pytest.fixture(scope="module")
def by_seats() -> Plan:
    return answer(seats_question(), workers=1)


@pytest.fixture(scope="module")
def by_speed() -> Plan:
    return answer(speed_question(), workers=1)


def test_capacity_by_seats_is_found(by_seats: Plan) -> None:
    assert by_seats.num_replicas == by_seats.gpus == 3
    assert {2, 3, 4} <= set(by_seats.candidates)


def test_too_few_replicas_are_unstable_and_enough_are_not(by_seats: Plan) -> None:
    assert by_seats.candidates[2].unstable
    assert by_seats.candidates[2].waiting.share > 0.05
    assert not by_seats.candidates[3].unstable
    assert by_seats.candidates[2].chance == 0.0


def test_capacity_by_speed_is_found(by_speed: Plan) -> None:
    # 4 replicas: x = 4.5, so 4.09 run and a step takes 9.1 ms; 3 replicas: x = 6, so 7.5 run and it takes 12.5 ms.
    assert by_speed.num_replicas == 4
    fewer, chosen = by_speed.candidates[3].binding, by_speed.candidates[4].binding
    assert chosen.name == fewer.name == "tpot_ms.p99"
    assert 0.0088 < chosen.estimate.value < 0.0100
    assert 0.0120 < fewer.estimate.value < 0.0135
    assert fewer.headroom == pytest.approx(1 - fewer.estimate.value / 0.011)


def test_more_replicas_never_fail_where_fewer_suffice(by_seats: Plan, by_speed: Plan) -> None:
    for plan in (by_seats, by_speed):
        verdicts = [candidate.suffices for candidate in plan.candidates.values()]
        assert verdicts == sorted(verdicts)


def test_the_run_is_long_compared_to_a_request_and_warm_up_is_cut(by_speed: Plan) -> None:
    assert by_speed.period is not None
    assert by_speed.period.measured_s >= 10 * OUTPUT_TOKENS * 0.0091
    # With constant lifetimes of about 0.9 s an empty service is full after one of them.
    # and one that begins with its load needs less.
    assert 0.2 < by_speed.period.warmup_s < 10
    assert by_speed.settled


def test_all_sizes_meet_the_same_traffic_and_seeds_differ() -> None:
    plan = answer(speed_question(arrivals="poisson", limit_ms=13), workers=1)
    sent = [[trial.num_requests for trial in candidate.trials] for candidate in plan.candidates.values()]
    assert len(sent) >= 2
    assert all(row == sent[0] for row in sent)
    assert len(set(sent[0])) == len(sent[0])


def test_the_answer_does_not_depend_on_the_number_of_workers(by_speed: Plan) -> None:
    assert summary(answer(speed_question(), workers=2)) == summary(by_speed)


def test_a_question_travels_to_another_process() -> None:
    asked = speed_question()
    there = pickle.loads(pickle.dumps(asked))  # noqa: S301 - our own bytes
    period = Period(1.0, 3.0, 1.0)
    assert run_trial(there, DEMAND, period, 4, 0).outcomes == run_trial(asked, DEMAND, period, 4, 0).outcomes


def test_the_interval_holds_the_answer() -> None:
    plan = answer(speed_question(arrivals="poisson", limit_ms=13, num_seeds=3), workers=1)
    assert plan.interval is not None
    assert plan.gpus is not None
    low, high = plan.interval
    assert low <= plan.gpus
    assert high is None or plan.gpus <= high
    assert 0 <= plan.candidates[plan.gpus - 1].chance <= plan.candidates[plan.gpus].chance <= 1


# -- infeasible, with its reason ---------------------------------------------------------------------------------------------


def test_a_limit_below_the_step_of_one_sequence_is_infeasible() -> None:
    plan = answer(speed_question(limit_ms=4), workers=1)
    assert plan.num_replicas is None
    assert plan.simulated_requests == 0
    assert plan.reason == "even alone on an idle engine, TPOT p99 is 6 ms (limit 4 ms)"


def test_a_goodput_share_that_lone_requests_miss_is_infeasible() -> None:
    slos = {"e2e_s": {"p10": 0.1, "p1": 0.1}, "min_goodput_share": 0.9}
    plan = answer(question(rate=5, slos=slos, step_ms=5, per_seq_ms=1), workers=1)
    assert plan.num_replicas is None
    assert "only 0.0% of requests keep all limits (min_goodput_share 90.0%)" in plan.reason


def test_a_load_beyond_all_gpus_is_infeasible_without_simulating() -> None:
    # 18 requests/s of 100 tokens at 1 ms a token and sequence need 1.8 replicas at best, 200 requests/s 20.
    plan = answer(question(rate=200, slos={"tpot_ms": {"p99": 100}}, step_ms=5, per_seq_ms=1, max_gpus=4), workers=1)
    assert plan.num_replicas is None
    assert plan.candidates == {}
    assert "20,000 output tokens/s need about" in plan.reason
    assert "plan.max_gpus is 4" in plan.reason


def test_an_slo_missed_at_the_most_gpus_is_infeasible() -> None:
    plan = answer(speed_question(max_gpus=3), workers=1)
    assert plan.num_replicas is None
    assert plan.reason.startswith("with 3 GPUs (plan.max_gpus) TPOT p99 is 12.")
    assert not plan.candidates[3].suffices


def test_prompts_that_are_all_too_long_are_infeasible() -> None:
    asked = speed_question()
    plan = answer(replace(asked, engine=asked.engine.model_copy(update={"max_model_len": 16})), workers=1)
    assert plan.num_replicas is None
    assert plan.reason == "every prompt has max_model_len 16 tokens or more; the shortest 16"
    assert text(plan).startswith("No number of GPUs up to 64 will do for constant (none): every prompt has")


@pytest.mark.parametrize("loop", [{"kind": "closed", "num_clients": 3}, {"kind": "barrier", "batch_size": 3}])
def test_clients_that_wait_are_refused_by_name(loop: dict[str, object]) -> None:
    lengths = {"kind": "custom", "prompt": {"kind": "constant", "value": 16}, "output": {"kind": "constant", "value": 10}}
    workload = validate({**loop, "lengths": lengths})
    cost, engine = CostModel.constant(1_000_000), EngineConfig(num_gpu_blocks=10_000)
    with pytest.raises(UserError, match=rf"workload\.kind: .* {loop['kind']}"):
        Question(workload=workload, engine=engine, cost=cost, slos=Slos.model_validate({"tpot_ms": {"p99": 5}}))


# -- the search by itself ------------------------------------------------------------------------------------------------------


def trial_of(tpot_ms: float, num_replicas: int, seed: int) -> Trial:
    """A run in which every request had that TPOT."""
    value = np.full(100, tpot_ms / 1000)
    flat = np.full(50, 20.0)
    return Trial(
        num_replicas=num_replicas, seed=seed, outcomes=[SloOutcome("tpot_ms.p99", tpot_ms / 1000, 0.01, 1.0, tpot_ms <= 10)],
        latencies={name: Latency(value, np.ones(100, np.bool_)) for name in ("ttft", "ttfvt", "tpot", "e2e")},
        in_system=flat, waiting=0 * flat, started=20, time_s=np.arange(50.0),
        kv_usage=np.zeros((50, num_replicas)), running=flat, queue=0 * flat, preemptions=0, num_requests=100, rejected=0,
        output_tokens_per_s=1.0, gpu_utilization=1.0, outside_domain={}, simulated_s=50.0, simulated_requests=100,
    )  # fmt: skip


ASKED = speed_question(limit_ms=10)
DEMAND = Demand(ASKED.traffic(0, num_requests=500).requests, 18.0, ASKED.engine, ASKED.cost)


def found(tpot_ms_by_size: dict[int, float]) -> tuple[int | None, Search]:
    asked = replace(ASKED, max_gpus=max(tpot_ms_by_size))
    with Pool(lambda task: trial_of(tpot_ms_by_size[task[0]] + 0.001 * task[1], *task), workers=1) as pool:
        search = Search(asked, DEMAND, pool)
        return search.run(), search


@pytest.mark.parametrize("smallest", [1, 2, 3, 4, 5, 9, 17, 40, 64])
def test_the_search_finds_any_size_and_judges_its_neighbours(smallest: int) -> None:
    num, search = found({n: 9.0 if n >= smallest else 11.0 for n in range(1, 65)})
    assert num == smallest
    assert {n for n in (smallest - 1, smallest, smallest + 1) if 1 <= n <= 64} <= set(search.candidates)
    assert len(search.candidates) <= 6


@pytest.mark.parametrize(
    ("tpot_ms", "started", "settled", "rising"),
    [(9.0, 20, True, False), (9.0, 5, False, False), (11.0, 5, False, True), (11.0, 60, False, False)],
    ids=["as it goes on", "too light, suffices", "too light, fails", "too heavy, fails"],
)
def test_only_a_size_that_could_suffice_needs_a_longer_warm_up(tpot_ms: float, started: int, settled: bool, rising: bool) -> None:
    """Began lighter than it is, and failed: more load would not mend that."""
    trials = tuple(replace(trial_of(tpot_ms + 0.001 * seed, 4, seed), started=started) for seed in range(4))
    candidate = Candidate.of(trials, ASKED.slos, ASKED.confidence)
    assert _settled(ASKED, DEMAND, Period(0.05, 50.0, 1.0), candidate) == settled
    assert _fails_anyway(ASKED, candidate) == rising


def test_a_size_that_suffices_between_two_that_do_not_is_chance() -> None:
    guess = DEMAND.guess(ASKED.slos, 64)  # what is probed first
    num, search = found({size: 9.0 if size == guess or size > guess + 1 else 11.0 for size in range(1, 65)})
    assert num == guess + 2
    assert search.candidates[guess].suffices
    assert not search.candidates[guess + 1].suffices


def test_no_size_suffices() -> None:
    num, search = found(dict.fromkeys(range(1, 9), 11.0))
    assert num is None
    assert not search.candidates[8].suffices


# -- figures over runs ---------------------------------------------------------------------------------------------------------


def test_percentiles_are_of_the_requests_of_all_runs() -> None:
    trials = (trial_of(8.0, 1, 0), trial_of(12.0, 1, 1))
    assert pooled(trials, "tpot").percentile(25) == pytest.approx(0.008)
    candidate = Candidate.of(trials, Slos.model_validate({"tpot_ms": {"p25": 10, "p75": 10}}), 0.95)
    assert [check.met for check in candidate.checks] == [True, False]
    assert candidate.binding.name == "tpot_ms.p75"
    assert not candidate.suffices
