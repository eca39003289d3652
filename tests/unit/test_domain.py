"""Steps beyond what was measured, against the reference engine's steps one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator.artifacts.domain import outside_domain
from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.request import RequestTable
from simulator.simulate import Scenario, simulate
from simulator.step.steplog import ROW
from simulator.workload import OpenLoop, Workload

LIMITS = {"prefill_seqs": 1, "prefill_tokens": 40, "decode_seqs": 6, "decode_context_tokens": 900, "decode_context_max_tokens": 230}


def test_shares_of_time_are_those_of_the_single_steps() -> None:
    rng = np.random.default_rng(0)
    requests = RequestTable.build(np.sort(rng.integers(0, 3 * 10**9, 60)), rng.integers(5, 90, 60), rng.integers(1, 200, 60))
    cost = CostModel.constant(10_000_000)
    domain = {name: (0.0, float(limit)) for name, limit in LIMITS.items()} | {"padded_tokens": (0.0, 1.0)}
    cost = CostModel(cost.artifact.model_copy(update={"domain": domain}))
    engine = EngineConfig(num_gpu_blocks=100, max_model_len=400, max_num_batched_tokens=64)
    asked = Scenario(Workload(requests, OpenLoop()), engine, cost, num_replicas=2)
    logs = simulate(replace(asked, stride=1)).logs
    rows = np.concatenate([log.rows for log in logs])
    lasted_ns = np.concatenate([np.diff(log.rows[:, ROW.index("last_end_ns")], prepend=0) for log in logs])
    of = {name: rows[:, column] for column, name in enumerate(ROW)}
    assert (of["steps"] == 1).all()
    decodes = of["decode_seqs"] > 0
    values = {
        "prefill_seqs": of["prefill_seqs"],
        "prefill_tokens": of["prefill_tokens"],
        "decode_seqs": of["decode_seqs"],
        "decode_context_tokens": of["intercept_sum"] + of["decode_seqs"] * of["first_step"],
        "decode_context_max_tokens": np.where(decodes, of["intercept_max"] + of["first_step"], 0),
    }
    expected = {name: float(lasted_ns @ (values[name] > limit) / lasted_ns.sum()) for name, limit in LIMITS.items()}
    assert all(0 < share < 1 for share in expected.values()), expected
    assert outside_domain(simulate(asked)) == pytest.approx(expected, rel=0.01)  # a gap without work may end in a stretch


def test_only_the_window_is_judged() -> None:
    requests = RequestTable.build(np.array([0, 0, 5 * 10**9]), np.full(3, 10), np.full(3, 100))
    cost = CostModel.constant(10_000_000)
    cost = CostModel(cost.artifact.model_copy(update={"domain": {"decode_seqs": (0.0, 1.0)}}))
    result = simulate(Scenario(Workload(requests, OpenLoop()), EngineConfig(num_gpu_blocks=4000), cost))
    assert outside_domain(result, (5.0, 7.0)) == {}
    assert outside_domain(result, (0.1, 0.9)) == {"decode_seqs": 1.0}


def test_within_the_domain_nothing_is_said() -> None:
    requests = RequestTable.build(np.zeros(3, np.int64), np.full(3, 10), np.full(3, 20))
    cost = CostModel.constant(10_000_000)
    cost = CostModel(cost.artifact.model_copy(update={"domain": dict.fromkeys(LIMITS, (0.0, 1e9))}))
    assert outside_domain(simulate(Scenario(Workload(requests), EngineConfig(num_gpu_blocks=4000), cost))) == {}
