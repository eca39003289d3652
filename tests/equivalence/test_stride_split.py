"""The macro-step against the reference where prompts and answers are computed on different replicas."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from simulator.clients.attempts import Outcome
from simulator.scheduler import Scheduler
from simulator.simulate import Result, simulate
from simulator.step.stepplan import StepPlan
from tests.support.digest import digest
from tests.support.fleets import split_scenario
from tests.support.services import with_stride
from tests.support.watch import simulate_watched

SEEDS = range(50_000, 50_120)


@cache
def reference(seed: int) -> Result:
    return simulate(with_stride(split_scenario(seed), 1))


@pytest.mark.parametrize("stride", [2, 17, None])
@pytest.mark.parametrize("seed", SEEDS)
def test_stride_changes_nothing(seed: int, stride: int | None) -> None:
    result, expected = simulate(with_stride(split_scenario(seed), stride)), reference(seed)
    assert digest(result) == digest(expected)
    if result.attempts is not None and expected.attempts is not None:
        assert result.attempts.outcome.tolist() == expected.attempts.outcome.tolist()


def test_the_sample_holds_what_could_go_wrong() -> None:
    found: Counter[str] = Counter()
    for seed in SEEDS:
        result = reference(seed)
        prefill = len(result.scenario.groups) - 1
        decoding = (result.replica >= 0) & (result.group[result.replica] != prefill)
        found["preempted where they decode"] += int(result.preemptions[decoding].sum())
        found["closed loops"] += result.attempts is None and result.finish_ns.min() >= 0
        if result.attempts is not None:
            aborted = result.attempts.outcome == Outcome.ABORTED
            found["aborted before they moved"] += int((aborted & ~decoding).sum())
            found["aborted after they moved"] += int((aborted & decoding).sum())

    def starves(scheduler: Scheduler, plan: StepPlan) -> None:
        found["waited for blocks that were sent"] += bool(scheduler.pool.sending) and plan.tokens == 0 and scheduler.has_requests

    for seed in SEEDS[::4]:
        simulate_watched(split_scenario(seed), starves)
    assert min(found.values()) >= 20, found
