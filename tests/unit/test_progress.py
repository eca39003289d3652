"""How far a run is, told while it runs."""

from __future__ import annotations

import numpy as np

from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.request import RequestTable
from simulator.simulate import Scenario, simulate
from simulator.workload import OpenLoop, Workload


def test_progress_counts_finished_requests_and_changes_nothing() -> None:
    requests = RequestTable.build(np.arange(20) * 10**9, np.full(20, 10), np.full(20, 50))
    scenario = Scenario(Workload(requests, OpenLoop()), EngineConfig(num_gpu_blocks=4000), CostModel.constant(10_000_000))
    told: list[tuple[int, int]] = []
    result = simulate(scenario, lambda finished, total: told.append((finished, total)))
    # Each takes half a second, and is told of at the next whole one.
    assert told == [(second, 20) for second in range(20)]
    assert (result.finish_ns == simulate(scenario).finish_ns).all()
