"""Deployments against closed forms: availability, the time of a transfer, a node lost, a day followed."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.clients.patience import ClientConfig
from simulator.comparing.variants import mean_replicas, peak_replicas, per_group, serving_share
from simulator.cost import CostModel
from simulator.fleet.autoscaler import Autoscaling
from simulator.fleet.disaggregation import Disaggregation, bytes_per_block
from simulator.fleet.outages import Failure, Outages, RandomFailures, RollingDeploy
from simulator.fleet.spares import Spares
from simulator.request import RequestTable
from simulator.simulate import NS_PER_S, Scenario, simulate
from simulator.workload import OpenLoop, Workload
from tests.support.cases import cost_model
from tests.support.queues import Interval, engine

STEP_NS = 10_000_000


def steady(n: int, gap_s: float, prompt_tokens: int = 1, output_tokens: int = 5) -> Workload:
    arrival_ns = np.rint(np.arange(n) * gap_s * NS_PER_S).astype(np.int64)
    return Workload(RequestTable.build(arrival_ns, np.full(n, prompt_tokens), np.full(n, output_tokens)), OpenLoop())


def test_a_node_is_there_for_mtbf_of_mtbf_and_mttr_and_start() -> None:
    mtbf_s, mttr_s, start_s = 300.0, 60.0, 40.0
    outages = Outages(engine_start_s=start_s, random=RandomFailures(mtbf_s=mtbf_s, mttr_s=mttr_s))
    shares, refused = [], []
    for seed in range(12):
        # Sixteen replicas of a GPU: two nodes.
        scenario = Scenario(
            steady(4000, 5.0), engine(64), CostModel.constant(STEP_NS), num_replicas=16, seed=seed, outages=outages, sample_s=100.0
        )
        result = simulate(scenario)
        shares.append(serving_share(result))
        assert result.attempts is not None
        refused.append(float((result.replica < 0).mean()))
    # A failure during the start of the engines, exponential as all are, costs that start: up only after a start that survives.
    survives = np.exp(-start_s / mtbf_s)
    up = mtbf_s * survives / (mtbf_s + mttr_s)
    assert Interval.of(shares).agrees_with(up, within=0.1)
    # Nobody serves where both nodes are away, independently of each other.
    assert Interval.of(refused).agrees_with((1 - up) ** 2, within=0.4)


def test_nodes_to_own_are_the_fewest_that_are_up_long_enough() -> None:
    spares = Spares(mtbf_s=900.0, mttr_s=100.0, at_least=0.99)
    assert spares.node_availability == pytest.approx(0.9)
    # Nine GPUs need two nodes: of three, two are up with 0.9³ + 3 · 0.9² · 0.1 = 0.972, of four with 0.9963.
    assert spares.nodes(9) == 4
    assert spares.nodes(8) == 2
    assert "own 4 nodes of 8 GPUs: 2 or more, as many as needed, then serve 99.630% of the time" in spares.describe(9)
    # As the simulation has it, the start of the engines included: see the test above.
    assert Spares(mtbf_s=300.0, mttr_s=60.0, engine_start_s=40.0).node_availability == pytest.approx(300 * np.exp(-40 / 300) / 360)


def test_a_transfer_takes_bytes_over_bandwidth_and_latency() -> None:
    # 100 tokens are 7 blocks of 16; 7 MB at 2 GB/s are 3.5 ms.
    split = Disaggregation(bandwidth_gb_per_s=2.0, latency_s=0.004, bytes_per_block=1e6)
    scenario = Scenario(steady(3, 1.0, prompt_tokens=100), engine(8), CostModel.constant(STEP_NS), disaggregation=split)
    result = simulate(scenario)
    # A step for the prompt, the transfer, and a step for the last token of the prompt.
    assert (result.first_token_ns - result.sent_ns).tolist() == [2 * STEP_NS + 7_500_000] * 3
    assert (result.finish_ns - result.first_token_ns).tolist() == [4 * STEP_NS] * 3
    assert per_group(result)["decode"]["requests_share"] == 1.0


def test_transfers_leave_a_replica_one_after_another() -> None:
    split = Disaggregation(bandwidth_gb_per_s=1.0, bytes_per_block=1e8)
    arrival_ns = np.zeros(4, np.int64)
    workload = Workload(RequestTable.build(arrival_ns, np.full(4, 16), np.full(4, 1)), OpenLoop())
    result = simulate(Scenario(workload, engine(8), CostModel.constant(STEP_NS), disaggregation=split))
    # All prompts are done in one step; a block of 0.1 s each follows; each decode replica step then takes 10 ms.
    gaps_ns = np.diff(np.sort(result.first_token_ns))
    assert gaps_ns.tolist() == [100_000_000] * 3


def test_a_prompt_holds_its_blocks_on_the_prefill_replica_until_they_are_sent() -> None:
    # Prompts of 7 blocks, sent in 700 ms. Of 10 blocks, the second prompt gets its own when the first is there; the third likewise.
    split = Disaggregation(bandwidth_gb_per_s=1.0, bytes_per_block=1e8)
    cramped = engine(8).model_copy(update={"num_gpu_blocks": 11, "max_model_len": 160})
    scenario = Scenario(steady(3, 0.0, prompt_tokens=100, output_tokens=1), cramped, CostModel.constant(STEP_NS), disaggregation=split)
    result = simulate(scenario)
    there_ns = np.arange(1, 4) * (STEP_NS + 700_000_000)
    assert (result.first_token_ns - STEP_NS).tolist() == there_ns.tolist()
    assert result.scheduled_ns.tolist() == [0, *there_ns[:-1].tolist()]


def test_a_prompt_that_is_sent_keeps_no_seat() -> None:
    split = Disaggregation(bandwidth_gb_per_s=1.0, bytes_per_block=1e8)
    scenario = Scenario(
        steady(3, 0.0, prompt_tokens=100, output_tokens=1), engine(1), CostModel.constant(STEP_NS), num_replicas=3, disaggregation=split
    )
    assert simulate(scenario).scheduled_ns.tolist() == [0, STEP_NS, 2 * STEP_NS]


def test_a_block_has_the_size_that_vllm_reported() -> None:
    shape = {"num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8, "hidden_size": 5120}
    assert bytes_per_block(shape, "auto", 16) == 3_145_728
    shape = {"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "hidden_size": 3584}
    assert bytes_per_block(shape, "fp8", 16) == 458_752
    assert bytes_per_block(None, "auto", 16) is None


def test_a_failed_node_takes_its_eight_gpus_and_no_others() -> None:
    outages = Outages(engine_start_s=2.0, events=(Failure(at_s=10.0, node=0, down_s=3.0),))
    scenario = Scenario(steady(200, 0.1), engine(64), CostModel.constant(STEP_NS), num_replicas=10, outages=outages)
    result = simulate(scenario)
    gone = result.lifetime_ns[:10, 1] < result.end_ns
    assert gone.tolist() == [True] * 8 + [False] * 2
    assert result.lifetime_ns[10:, 0].tolist() == [15 * NS_PER_S] * 8
    assert result.gpu_ns == 10 * result.end_ns


def test_a_rolling_deploy_renews_all_and_loses_nothing() -> None:
    outages = Outages(engine_start_s=2.0, events=(RollingDeploy(at_s=1.0),))
    scenario = Scenario(steady(600, 0.05), engine(64), CostModel.constant(STEP_NS), num_replicas=3, outages=outages, clients=ClientConfig())
    result = simulate(scenario)
    assert (result.finish_ns >= 0).all()
    assert (result.lifetime_ns[:3, 1] < result.end_ns).all()
    # One after the other: each is renewed when the one before serves again.
    assert len(result.lifetime_ns) == 6
    assert (result.lifetime_ns[1:3, 1] > result.lifetime_ns[3:5, 0]).all()
    there = [((born <= at) & (at < gone)).sum() for at in result.lifetime_ns[:, 1] for born, gone in [result.lifetime_ns.T]]
    assert min(there[:3]) >= 2


def test_an_autoscaled_fleet_holds_what_littles_law_asks_for() -> None:
    # Two requests a second that stay two seconds each: four in the service, and with two a replica wanted, two replicas.
    cost = cost_model({"one": STEP_NS})
    scaling = Autoscaling(target=2.0, max_replicas=8, interval_s=5.0, scale_down_window_s=0.0, engine_start_s=1.0)
    scenario = Scenario(steady(1200, 0.5, output_tokens=200), engine(64), cost, num_replicas=6, autoscaling=scaling)
    result = simulate(scenario)
    assert (result.finish_ns >= 0).all()
    late = result.timeline.time_ns > 30 * NS_PER_S
    there = (result.timeline.running[late] + result.timeline.waiting[late] > 0).sum(1)
    assert there.mean() == pytest.approx(2.0, abs=0.2)
    assert peak_replicas(result) == 6
    assert mean_replicas(result) == 3
    # Six until the first look, two from then on, but for those that drain.
    assert result.gpu_ns / NS_PER_S == pytest.approx(6 * 5 + 2 * (result.end_ns / NS_PER_S - 5), rel=0.03)
