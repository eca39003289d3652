"""The laws where clients time out, try again, give up, or are turned away."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from simulator.clients.attempts import Outcome
from simulator.metrics import latencies, within_limits
from simulator.planning.slo import Slos
from simulator.reporting.summary import summary
from simulator.scheduler import Scheduler
from simulator.simulate import Result, Scenario, simulate
from simulator.step.stepplan import StepPlan
from tests.support.combined import cached
from tests.support.digest import digest
from tests.support.impatient import impatient_scenario
from tests.support.services import same_way_out
from tests.support.watch import simulate_watched


def service(seed: int) -> Scenario:
    """Every other one with prefix caching."""
    return same_way_out(cached(impatient_scenario, seed) if seed % 2 else impatient_scenario(seed))


scenarios = st.integers(0, 1 << 32).map(service)
law = settings(max_examples=40, derandomize=True, phases=[Phase.explicit, Phase.generate])


def count(result: Result, outcome: Outcome) -> int:
    assert result.attempts is not None
    return int((result.attempts.outcome == outcome).sum())


@law
@given(scenarios)
def test_sent_is_finished_aborted_rejected_and_in_flight(scenario: Scenario) -> None:
    result = simulate(scenario)
    attempts = result.attempts
    assert attempts is not None
    ends = (Outcome.FINISHED, Outcome.ABORTED, Outcome.REJECTED, Outcome.IN_FLIGHT)
    assert int((result.sent_ns >= 0).sum()) == sum(count(result, outcome) for outcome in ends)
    assert ((result.finish_ns >= 0) == (attempts.outcome == Outcome.FINISHED)).all()
    assert ((attempts.left_ns >= 0) == np.isin(attempts.outcome, (Outcome.ABORTED, Outcome.REJECTED))).all()
    if scenario.horizon_s is None:
        # Every request was answered or given up, once.
        assert count(result, Outcome.IN_FLIGHT) == count(result, Outcome.UNSENT) == 0
        ended = attempts.gave_up | (attempts.outcome == Outcome.FINISHED)
        assert np.bincount(attempts.request[ended]).tolist() == [1] * len(scenario.workload.requests)


@law
@given(scenarios)
def test_what_the_engines_hold_is_what_was_sent_and_has_not_ended(scenario: Scenario) -> None:
    """After all answers, and the aborts on their way, every block is free again."""

    def check(scheduler: Scheduler, plan: StepPlan) -> None:
        scheduler.check_blocks()

    result = simulate_watched(scenario, check, check)
    overheads = scenario.cost.artifact.overheads
    assert result.attempts is not None
    for replica in range(scenario.num_replicas):
        here = (result.replica == replica) & (result.sent_ns >= 0)
        for sample, at_ns in enumerate(result.timeline.time_ns):
            held = result.timeline.running[sample, replica] + result.timeline.waiting[sample, replica]
            in_engine = here & (result.sent_ns <= at_ns)
            answered = in_engine & (result.finish_ns >= 0) & (result.finish_ns - overheads.egress_ns <= at_ns)
            left = in_engine & (result.attempts.left_ns >= 0) & (result.attempts.left_ns <= at_ns)
            # Whoever left may still be there until the engine has seen it, and the step under way is over.
            assert (in_engine & ~answered & ~left).sum() - _late(result, at_ns, here) <= held <= (in_engine & ~answered).sum()


def _late(result: Result, at_ns: int, here: np.ndarray) -> int:
    """Attempts that the engine finished, too late for their clients: nothing tells when."""
    return int((here & (result.emitted_tokens == result.requests.output_tokens) & (result.finish_ns < 0)).sum())


@law
@given(scenarios)
def test_no_answer_arrives_at_or_after_its_deadline(scenario: Scenario) -> None:
    result, clients = simulate(scenario), scenario.clients
    assert clients is not None
    assert result.attempts is not None
    done, aborted = result.finish_ns >= 0, result.attempts.outcome == Outcome.ABORTED
    if clients.timeout_s is not None:
        limit_ns = round(clients.timeout_s * 1e9)
        assert (result.finish_ns[done] - result.sent_ns[done] < limit_ns).all()
        assert (result.attempts.left_ns[aborted] - result.sent_ns[aborted] <= limit_ns).all()
    if clients.patience is not None:
        patience_ns = clients.patience.draw_ns(scenario.seed, len(scenario.workload.requests))[result.attempts.request]
        if clients.patience.until == "e2e":
            assert (result.finish_ns[done] - result.asked_ns[done] < patience_ns[done]).all()
        assert (result.attempts.left_ns[aborted] <= result.asked_ns[aborted] + patience_ns[aborted]).all() or clients.timeout_s
    most = clients.retry.max_attempts if clients.retry else 1
    assert result.attempts.number.max() <= most


@law
@given(scenarios)
def test_attempts_follow_one_another(scenario: Scenario) -> None:
    attempts = simulate(scenario).attempts
    assert attempts is not None
    for request in np.unique(attempts.request[attempts.number > 1]).tolist():
        rows = np.flatnonzero(attempts.request == request)
        assert attempts.number[rows].tolist() == list(range(1, len(rows) + 1))
        assert attempts.last[rows].tolist() == [False] * (len(rows) - 1) + [True]
        for earlier, later in pairwise(rows.tolist()):
            assert attempts.left_ns[earlier] >= 0
            assert attempts.requests.arrival_ns[later] > attempts.left_ns[earlier] or attempts.outcome[later] == Outcome.UNSENT


@law
@given(scenarios)
def test_tokens_come_one_by_one_and_never_after_the_abort_is_seen(scenario: Scenario) -> None:
    result = simulate(scenario)
    assert result.attempts is not None
    for log in result.logs:
        segments = log.segments
        reached: dict[int, int] = {}
        for row, token, first_step, last_step in segments[np.lexsort((segments[:, 2], segments[:, 0]))].tolist():
            assert token == reached.get(row, 0) + 1
            reached[row] = token + last_step - first_step
            left_ns = int(result.attempts.left_ns[row])
            if left_ns >= 0:
                seen_ns = left_ns + scenario.cost.artifact.overheads.ingress_ns
                assert (log.end_ns(np.arange(first_step, last_step + 1)) < seen_ns).all()


@law
@given(scenarios)
def test_a_request_given_up_is_never_good_and_its_answer_never_comes(scenario: Scenario) -> None:
    result = simulate(scenario)
    slos = Slos.model_validate({"e2e_s": {"p99": 1e9}, "min_goodput_share": 0.5})
    figures, attempts = summary(result, slos), result.attempts
    assert attempts is not None
    asked = (result.asked_ns >= 0) & attempts.last
    e2e = latencies(result)["e2e"]
    assert np.isinf(e2e.values_s).sum() == figures["given_up"] == attempts.gave_up[asked].sum()
    assert figures["completed"] + figures["given_up"] + figures["censored"] == figures["num_requests"]
    assert within_limits(result, slos).attainment(1.0) <= 1 - figures["given_up_share"] + 1e-9


@law
@given(scenarios)
def test_same_seed_same_bytes(scenario: Scenario) -> None:
    assert digest(simulate(scenario)) == digest(simulate(scenario))
