"""Runs that begin in mid-traffic: the load is there from the start, and nothing of a request is lost or counted twice."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.planning.sizing import Demand
from simulator.planning.underway import begin
from simulator.request import RequestTable
from simulator.simulate import Scenario, simulate
from simulator.workload import OpenLoop, Workload

NS = 1_000_000_000
RATE, PAST_S, END_S = 10.0, 60.0, 60.0


@pytest.fixture(scope="module")
def traffic() -> Workload:
    """20 ms + 0.05 ms a sequence, 10 requests/s of 500 tokens on average: about 130 in the system."""
    rng = np.random.default_rng(5)
    arrival_ns = np.sort(rng.integers(0, int((PAST_S + END_S) * NS), int(RATE * (PAST_S + END_S))))
    outputs = np.minimum(rng.exponential(500, len(arrival_ns)).astype(int) + 1, 2000)
    visible = rng.integers(1, outputs + 2)
    return Workload(RequestTable.build(arrival_ns, np.full(len(arrival_ns), 20), outputs, visible_token=visible), OpenLoop())


@pytest.fixture(scope="module")
def demand(traffic: Workload) -> Demand:
    return Demand(traffic.requests, RATE, EngineConfig(num_gpu_blocks=100_000), CostModel.constant(20_000_000, per_seq_ns=50_000))


def test_no_token_is_lost_and_the_traffic_goes_on_unchanged(traffic: Workload, demand: Demand) -> None:
    start = begin(traffic, PAST_S, demand, 1)
    requests, before = start.workload.requests, traffic.requests
    rows = np.searchsorted(before.request_id.astype(int), requests.request_id.astype(int))
    assert (requests.prompt_tokens + requests.output_tokens == (before.prompt_tokens + before.output_tokens)[rows]).all()
    assert (requests.truncated == before.truncated[rows]).all()
    assert (requests.arrival_ns[: start.num_requests] == 0).all()
    new = slice(start.num_requests, None)
    sent_ns = requests.arrival_ns[new] - round(start.lead_s * NS)
    assert np.abs(sent_ns - (before.arrival_ns[rows][new] - PAST_S * NS)).max() <= 2
    assert (requests.output_tokens[new] == before.output_tokens[rows][new]).all()
    assert (requests.visible_token[new] == before.visible_token[rows][new]).all()
    assert len(requests) - start.num_requests == int((before.arrival_ns >= PAST_S * NS).sum())


def test_the_service_holds_its_load_from_the_start(traffic: Workload, demand: Demand) -> None:
    start = begin(traffic, PAST_S, demand, 1)

    def in_system(workload: Workload, skip_s: float) -> np.ndarray:
        timeline = simulate(Scenario(workload, demand.engine, demand.cost, sample_s=0.5, horizon_s=skip_s + END_S)).timeline
        return (timeline.running + timeline.waiting)[timeline.time_ns >= skip_s * NS, 0]

    expected = in_system(traffic, PAST_S)  # of a run that began empty, long ago
    found = in_system(start.workload, start.lead_s)
    assert start.num_requests == pytest.approx(expected[0], rel=0.1)
    assert found[:10] == pytest.approx(expected[:10], rel=0.1)
    assert found.mean() == pytest.approx(expected.mean(), rel=0.03)


def test_without_a_past_nothing_is_under_way(traffic: Workload, demand: Demand) -> None:
    start = begin(traffic, 0.0, demand, 1)
    assert (start.num_requests, start.lead_s) == (0, 0.0)
    assert (start.workload.requests.arrival_ns == traffic.requests.arrival_ns).all()
