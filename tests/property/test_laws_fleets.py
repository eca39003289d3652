"""The laws where replicas fail, drain, start anew, and come and go with the load."""

from __future__ import annotations

import numpy as np
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from simulator.clients.attempts import Outcome
from simulator.scheduler import Scheduler
from simulator.simulate import Scenario, simulate
from simulator.step.stepplan import StepPlan
from tests.support.combined import cached
from tests.support.digest import digest
from tests.support.fleets import fleet_scenario
from tests.support.services import same_way_out
from tests.support.watch import simulate_watched

# Every other one with prefix caching.
scenarios = st.integers(0, 1 << 32).map(lambda seed: cached(fleet_scenario, seed) if seed % 2 else fleet_scenario(seed)).map(same_way_out)
law = settings(max_examples=40, derandomize=True, phases=[Phase.explicit, Phase.generate])


@law
@given(scenarios)
def test_sent_is_finished_aborted_rejected_lost_and_in_flight(scenario: Scenario) -> None:
    result = simulate(scenario)
    if result.attempts is None:
        assert scenario.horizon_s is not None or (result.finish_ns >= 0).all()
        return
    outcome = result.attempts.outcome
    assert ((result.sent_ns >= 0) == (outcome != Outcome.UNSENT)).all()
    assert ((result.finish_ns >= 0) == (outcome == Outcome.FINISHED)).all()
    assert ((result.attempts.left_ns >= 0) == np.isin(outcome, (Outcome.ABORTED, Outcome.REJECTED, Outcome.LOST))).all()
    if scenario.horizon_s is None:
        ended = result.attempts.gave_up | (outcome == Outcome.FINISHED)
        assert np.bincount(result.attempts.request[ended], minlength=len(scenario.workload.requests)).tolist() == [1] * len(
            scenario.workload.requests
        )


@law
@given(scenarios)
def test_requests_are_on_replicas_that_were_there(scenario: Scenario) -> None:
    result = simulate(scenario)
    placed = result.replica >= 0
    born, gone = result.lifetime_ns[result.replica[placed]].T
    assert (born <= result.sent_ns[placed]).all()
    assert (result.sent_ns[placed] <= gone).all()
    egress_ns = np.array([group.cost.artifact.overheads.egress_ns for group in scenario.groups])[result.group]
    done = placed & (result.finish_ns >= 0)
    assert (result.finish_ns[done] - egress_ns[result.replica[done]] <= result.lifetime_ns[result.replica[done], 1]).all()
    if result.attempts is not None:
        lost = result.attempts.outcome == Outcome.LOST
        assert (result.attempts.left_ns[lost] == result.lifetime_ns[result.replica[lost], 1]).all()
    for replica, log in enumerate(result.logs):
        ends = np.array([end for _, piece in log.iter_ends() for end in piece.tolist()], np.int64)
        assert (np.diff(ends) >= 0).all()
        assert not len(ends) or result.lifetime_ns[replica, 0] <= ends[0] <= ends[-1] <= result.lifetime_ns[replica, 1]


@law
@given(scenarios)
def test_no_more_gpus_hold_replicas_than_are_held(scenario: Scenario) -> None:
    result = simulate(scenario)
    gpus = np.array([group.gpus_per_replica for group in scenario.groups])[result.group]
    there_ns = int((gpus * (result.lifetime_ns[:, 1] - result.lifetime_ns[:, 0])).sum())
    assert there_ns <= result.gpu_ns
    if scenario.autoscaling is None:
        assert result.gpu_ns == sum(group.num_replicas * group.gpus_per_replica for group in scenario.groups) * result.end_ns
    else:
        most = max(scenario.autoscaling.max_replicas, scenario.num_replicas) + sum(group.num_replicas for group in scenario.others)
        for at_ns in result.lifetime_ns[:, 0].tolist():
            born, gone = result.lifetime_ns.T
            # What drains is there beside what takes its place.
            assert ((born <= at_ns) & (at_ns < gone)).sum() <= 2 * most


@law
@given(scenarios)
def test_blocks_and_bytes(scenario: Scenario) -> None:
    def check(scheduler: Scheduler, plan: StepPlan) -> None:
        scheduler.check_blocks()

    result = simulate_watched(scenario, check, check)
    assert digest(result) == digest(simulate(scenario))
    assert (result.timeline.kv_blocks <= result.usable_blocks).all()
