"""The macro-step against the reference where replicas fail, drain, start, and differ."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from simulator.clients.attempts import Outcome
from simulator.simulate import Result, simulate
from tests.support.digest import digest
from tests.support.fleets import fleet_scenario
from tests.support.services import with_stride

SEEDS = range(40_000, 40_150)


@cache
def reference(seed: int) -> Result:
    return simulate(with_stride(fleet_scenario(seed), 1))


def whole(result: Result) -> tuple[object, ...]:
    attempts = result.attempts
    ends = [] if attempts is None else [attempts.outcome.tolist(), attempts.left_ns.tolist(), attempts.request.tolist()]
    return digest(result), ends, result.group.tolist(), result.lifetime_ns.tolist(), result.gpu_ns


@pytest.mark.parametrize("stride", [2, 17, None])
@pytest.mark.parametrize("seed", SEEDS)
def test_stride_changes_nothing(seed: int, stride: int | None) -> None:
    assert whole(simulate(with_stride(fleet_scenario(seed), stride))) == whole(reference(seed))


def test_the_sample_holds_what_could_go_wrong() -> None:
    found: Counter[str] = Counter()
    for seed in SEEDS:
        result = reference(seed)
        scenario, attempts = result.scenario, result.attempts
        started_later = result.lifetime_ns[:, 0] > 0
        gone = result.lifetime_ns[:, 1] < result.end_ns
        found["autoscaled: started"] += int(started_later.sum()) if scenario.outages is None else 0
        found["autoscaled: gone"] += int(gone.sum()) if scenario.outages is None else 0
        found["failed or renewed"] += int(gone.sum()) if scenario.outages is not None else 0
        found["two groups at work"] += bool(result.group.max() == 1 and result.busy_ns[result.group == 1].sum() > 0)
        if attempts is not None:
            found["lost"] += int((attempts.outcome == Outcome.LOST).sum())
            found["lost and answered at a retry"] += int(((attempts.number > 1) & (attempts.outcome == Outcome.FINISHED)).sum())
    assert min(found.values()) >= 30, found
