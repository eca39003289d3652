"""Watching a run from inside."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from simulator.drafts.verify import VerifyScheduler
from simulator.scheduler import Scheduler
from simulator.simulate import Result, Scenario, simulate
from simulator.step.sequence import Sequence
from simulator.step.stepplan import StepPlan


def simulate_watched(
    scenario: Scenario,
    after_schedule: Callable[[Scheduler, StepPlan], None] = lambda scheduler, plan: None,
    after_commit: Callable[[Scheduler, StepPlan], None] = lambda scheduler, plan: None,
) -> Result:
    """`simulate`, with a look at the scheduler after every plan and after every result."""
    kind = Scheduler if scenario.acceptance is None else VerifyScheduler
    schedule, commit = kind.schedule, kind.commit

    def watched_schedule(scheduler: Scheduler) -> StepPlan:
        plan = schedule(scheduler)
        after_schedule(scheduler, plan)
        return plan

    def watched_commit(scheduler: Scheduler, steps: int, aborted: Iterable[Sequence] = ()) -> tuple[StepPlan, list[Sequence]]:
        plan, finished = commit(scheduler, steps, aborted)
        after_commit(scheduler, plan)
        return plan, finished

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "schedule", watched_schedule)
        patch.setattr(kind, "commit", watched_commit)
        return simulate(scenario)
