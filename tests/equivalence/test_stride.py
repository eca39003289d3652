"""The macro-step against the reference: stride k gives what stride 1 gives, to the nanosecond."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest

from simulator.simulate import Result, simulate
from simulator.workload import Barrier, ClosedLoop
from tests.support.digest import COLUMNS, SAMPLES
from tests.support.services import random_scenario, with_stride

# The last ones: a client's answer, and what it sends next, at the very instant of another replica's step end.
SEEDS = [*range(10_000, 10_240), 20_441, 21_008, 21_143, 21_221]
STRIDES = [2, 3, 17, None]


@cache
def reference(seed: int) -> Result:
    return simulate(with_stride(random_scenario(seed), 1))


def steps(result: Result) -> list[list[int]]:
    """When every step of every replica ended, stretches taken apart."""
    pieces = [[ends for _, ends in log.iter_ends(steps_at_once=50)] for log in result.logs]
    return [np.concatenate(ends).tolist() if ends else [] for ends in pieces]


def segments(result: Result) -> list[list[list[int]]]:
    return [sorted(log.segments.tolist()) for log in result.logs]


def assert_same(result: Result, expected: Result) -> None:
    for name in COLUMNS:
        assert getattr(result, name).tolist() == getattr(expected, name).tolist(), name
    for name in SAMPLES:
        assert getattr(result.timeline, name).tolist() == getattr(expected.timeline, name).tolist(), name
    assert result.end_ns == expected.end_ns
    assert steps(result) == steps(expected)
    assert segments(result) == segments(expected)


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("seed", SEEDS)
def test_stride_changes_nothing(seed: int, stride: int | None) -> None:
    assert_same(simulate(with_stride(random_scenario(seed), stride)), reference(seed))


def test_the_sample_holds_what_could_go_wrong() -> None:
    found: Counter[str] = Counter()
    for seed in SEEDS:
        result = reference(seed)
        scenario, overheads = result.scenario, result.scenario.cost.artifact.overheads
        engine = scenario.engine
        found[f"preemptions, {engine.scheduling_policy}, async {engine.async_scheduling}"] += int(result.preemptions.sum())
        found["closed loop"] += isinstance(scenario.workload.loop, ClosedLoop)
        found["barrier"] += isinstance(scenario.workload.loop, Barrier)
        found["replicas"] += scenario.num_replicas > 1
        found["cut by the horizon"] += bool((result.finish_ns < 0).any())
        found["time before a launch"] += overheads.schedule_ns > 0
        found["workers launch"] += bool(scenario.cost.artifact.step["full"].hand_over_ns)
        found["launches take time"] += bool(scenario.cost.artifact.step["full"].launch_ns)
        found["step ends at the horizon"] += scenario.horizon_s is not None and any(result.end_ns in ends for ends in steps(result))
        if scenario.cost.artifact.attention is None:  # else stretches are as short as the blocks of these cases
            taken = simulate(with_stride(scenario, None))
            found["steps saved"] += result.num_events - taken.num_events
            found["events of the macro-step"] += taken.num_events
    assert min(found[f"preemptions, {policy}, async {mode}"] for policy in ("fcfs", "priority") for mode in (True, False)) >= 200
    assert min(found[name] for name in ("closed loop", "barrier", "replicas", "cut by the horizon")) >= 20
    assert min(found[name] for name in ("time before a launch", "launches take time", "workers launch")) >= 50
    assert found["steps saved"] > found["events of the macro-step"]
