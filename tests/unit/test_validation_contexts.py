"""Contexts that no step tells are found from the requests: held against what the simulator, which recorded them, knows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from simulator.artifacts.artifact import Overheads
from simulator.artifacts.attention import SHARES, Attention
from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.request import RequestTable
from simulator.simulate import Result, Scenario, simulate
from simulator.step.steplog import ROW
from simulator.workload import OpenLoop, Workload
from validation.contexts import Decodes

ATTENTION = Attention(kv_heads=4, multiprocessors=132)


@pytest.fixture(scope="module")
def served() -> Result:
    random = np.random.default_rng(2)
    n = 200
    requests = RequestTable.build(
        np.sort(random.integers(0, 20_000_000_000, n)), random.integers(20, 4000, n), random.integers(50, 2000, n)
    )  # fmt: skip
    artifact = CostModel.constant(10_000_000, per_seq_ns=1e4, num_gpu_blocks=100_000).artifact
    cost = CostModel(artifact.model_copy(update={"attention": ATTENTION, "overheads": Overheads(ingress_ns=100_000, egress_ns=100_000)}))
    return simulate(Scenario(Workload(requests, OpenLoop()), EngineConfig(num_gpu_blocks=100_000), cost, stride=1))


@pytest.fixture(scope="module")
def log(served: Result) -> pd.DataFrame:
    rows = pd.DataFrame(served.logs[0].rows, columns=list(ROW))
    context = rows["intercept_sum"] + rows["decode_seqs"] * rows["first_step"]
    longest = np.where(rows["decode_seqs"] > 0, rows["intercept_max"] + rows["first_step"], 0)
    return rows.assign(update_s=rows["first_end_ns"] / 1e9, decode_context_tokens=context, longest=longest)


def decodes(served: Result, log: pd.DataFrame, replica: int = 0, num_replicas: int = 1) -> Decodes:
    latencies = {"first_token_s": (served.first_token_ns - served.sent_ns) / 1e9, "e2e_s": (served.finish_ns - served.sent_ns) / 1e9}
    return Decodes.of(log, served.requests, latencies, replica, num_replicas)


def test_what_multiprocessors_wait_for_is_found_again(served: Result, log: pd.DataFrame) -> None:
    found = decodes(served, log).idle_tokens(log, ATTENTION)
    known = log["decode_context_tokens"] * log["idle_share"] // SHARES
    assert known.max() > 10_000
    assert found.sum() == pytest.approx(known.sum(), rel=0.03)
    assert np.abs(found - known).mean() < 0.1 * known.mean()


def test_the_longest_context_is_found_again(served: Result, log: pd.DataFrame) -> None:
    assert decodes(served, log).longest(log) == pytest.approx(log["longest"].to_numpy(), abs=2)


def test_without_attention_in_the_cost_model_none_waits(served: Result, log: pd.DataFrame) -> None:
    assert not decodes(served, log).idle_tokens(log, None).any()


def test_requests_that_had_not_ended_decode_to_the_end_of_a_trace_that_was_cut(served: Result, log: pd.DataFrame) -> None:
    cut_s = 10.0
    first_s, e2e_s = ((column - served.sent_ns) / 1e9 for column in (served.first_token_ns, served.finish_ns))
    arrival_s = served.requests.arrival_ns / 1e9
    begun, ended = arrival_s + first_s < cut_s, arrival_s + e2e_s < cut_s
    until = log[log["update_s"] < cut_s]
    # One token a step: what a client had received by then.
    received = np.where(begun, [np.searchsorted(until["update_s"], at) for at in arrival_s + first_s], 0)
    latencies = {
        "first_token_s": np.where(begun, first_s, np.nan),
        "e2e_s": np.where(ended, e2e_s, np.nan),
        "received_tokens": np.where(ended, served.requests.output_tokens, len(until) - received).astype(float),
    }
    assert 0 < ended.sum() < begun.sum() < len(begun)
    found = Decodes.of(until, served.requests, latencies, 0, 1)
    assert len(found.first) == begun.sum()
    assert (found.end == len(until)).sum() == pytest.approx(begun.sum() - ended.sum(), abs=1)
    assert found.longest(until) == pytest.approx(until["longest"].to_numpy(), abs=2)
    known = until["decode_context_tokens"] * until["idle_share"] // SHARES
    assert found.idle_tokens(until, ATTENTION).sum() == pytest.approx(known.sum(), rel=0.05)


def test_the_requests_of_several_replicas_are_dealt_out(served: Result, log: pd.DataFrame) -> None:
    of_each = [decodes(served, log, replica, 3) for replica in range(3)]
    assert sorted(np.concatenate([each.prompt_tokens for each in of_each])) == sorted(served.requests.prompt_tokens)
