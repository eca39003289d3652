"""Points that are no rows of the grid: heads that sequences share, prompts as in service, chunks that experts see as no real ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from profiler.fit import StepTimeRegressor
from profiler.grid import grid
from profiler.points import Limits, Point
from profiler.profiled import from_raw
from profiler.raw import Raw
from profiler.sharing import SHARING, read_sharing, shared_read
from profiler.sustained import OWN, sustained_ns, whole_budget_ns
from simulator.artifacts.attention import Attention
from simulator.artifacts.models import MODELS, artifacts
from simulator.cost import CostModel
from simulator.engine import EngineConfig, GraphMode
from simulator.errors import UserError
from simulator.features import StepFeatures
from simulator.prefix.content import PromptContent
from simulator.request import RequestTable
from simulator.simulate import Scenario, simulate
from simulator.workload import OpenLoop, Workload
from tests.support.cases import cost_model

H200 = [path for path in artifacts() if path.relative_to(MODELS).parts[0] == "h200-sxm"]
H100_7B = Limits(32768, 1024, 8192, 66910, 16)


def raw(rows: list[dict[str, object]], **changed: object) -> Raw:
    meta = {"gpu": "h200-sxm", "model": "r1-distill-qwen-7b", "tensor_parallel_size": 1, "engine": {"async_scheduling": True}, **changed}
    plain = {"graph_mode": "FULL", "prefill_seqs": 0, "prefill_tokens": 0, "prefill_context_tokens": 0, "prefill_attention_tokens": 0}
    plain |= {"decode_seqs": 0, "decode_context_tokens": 0, "decode_context_max_tokens": 0, "verify_tokens": 0, "padded_tokens": 0}
    plain |= {"hold_s": 0.0, "queued": True, "launch_s": 1e-3, "schedule_cpu_s": 1e-4, "update_cpu_s": 1e-4}
    return Raw(json.dumps(meta), pd.DataFrame([plain | row for row in rows]).to_csv(index=False))


def sharing_rows(own_ns: float, again_ns: float) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for point in grid(H100_7B, ["shared"]):
        context = sum(point.contexts) + point.batch * point.chunk
        for shared in ((point.batch - point.num_chunks) * point.chunk, 0):
            gpu_s = 1e-9 * (4e6 + 9_000 * point.batch + own_ns * (context - shared) + again_ns * shared)
            row = {"point": point.name, "decode_seqs": point.batch, "decode_context_tokens": context, "decode_shared_tokens": shared}
            rows += [row | {"gpu_s": gpu_s}] * 3
    return rows


@pytest.mark.parametrize(("again_ns", "expected"), [(8.0, 0.667), (12.0, 1.0), (0.0, 0.0), (15.0, 1.0)])
def test_points_tell_what_a_further_reading_costs(again_ns: float, expected: float) -> None:
    assert shared_read([raw(sharing_rows(12.0, again_ns))]) == pytest.approx(expected, abs=1e-3)


def test_without_such_points_it_is_one_line() -> None:
    with pytest.raises(UserError, match="no points that share") as caught:
        shared_read([raw([{"point": "decode 4×1024", "decode_seqs": 4, "decode_context_tokens": 4096, "gpu_s": 4e-3}])])
    assert "\n" not in str(caught.value)


def test_points_beside_the_grid_are_no_rows_of_it() -> None:
    rows = sharing_rows(12.0, 8.0)[:6]
    rows += [{"point": "sustained 1×8192@0", "prefill_seqs": 1, "prefill_tokens": 8192, "padded_tokens": 8192, "gpu_s": 0.2}]
    rows += [{"point": "decode 4×1024", "decode_seqs": 4, "decode_context_tokens": 4096, "padded_tokens": 4, "gpu_s": 4e-3}]
    assert from_raw(raw(rows)).table["point"].tolist() == ["decode 4×1024"]


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ({}, True),
        ({"config": {"num_experts": 8, "num_attention_heads": 32}}, False),
        ({"config": {"num_local_experts": 8, "num_attention_heads": 32}}, False),
        ({"config": {"num_experts": 8, "num_attention_heads": 32}, "moe_routing": "uniform_random"}, True),
        ({"config": {"num_attention_heads": 32}}, True),
    ],
)
def test_of_a_mixture_of_experts_chunks_count_that_begin_their_prompt(changed: dict[str, object], kept: bool) -> None:
    whole, started, beside = "prefill 1×512@0", "prefill 1×512@2048", "mixed 4×512+1×512@4096"
    rows = [
        {"point": point, "prefill_seqs": 1, "prefill_tokens": 512, "prefill_context_tokens": 512, "padded_tokens": 512, "gpu_s": 0.02}
        for point in (whole, started, beside)
    ]
    found = from_raw(raw(rows, **changed)).table["point"].tolist()
    assert found == ([whole, started, beside] if kept else [whole])


def test_sharing_points_fit_the_engine_with_their_heads() -> None:
    small = Limits(4096, 64, 2048, 400, 128)
    points = grid(small, ["shared"])
    assert points
    for point in points:
        assert max(point.contexts) + point.chunk + point.life_steps <= small.max_model_len
    assert Point("shared", 16, 4096, "traffic", 1, 1024) not in points
    assert [Point.parse(point.name) for point in points] == points


@pytest.mark.parametrize("path", H200, ids=lambda path: path.relative_to(MODELS).as_posix())
def test_the_shipped_models_of_a_gpu_have_what_was_measured_there(path: Path) -> None:
    artifact = CostModel.load(path).artifact
    measured = read_sharing(MODELS / artifact.gpu / SHARING)
    assert artifact.attention is not None
    assert artifact.attention.shared_read == shared_read(measured) < 1
    assert artifact.provenance.sharing == " ".join(each.sha256 for each in measured)
    assert artifact.sustained_ns > 0
    assert artifact.sustained_ns < 0.15 * whole_budget_ns(artifact)


# -- in a simulation ------------------------------------------------------------------------------------------------------


def served(shared_read: float, *, heads: bool, stride: int | None = None) -> float:
    """When the last of 20 sequences ends that decode together; their prompts of 640 tokens share 512, or nothing."""
    n = 20
    cost = cost_model({"one": 1_000_000, "decode_context_tokens": 100.0})
    attention = Attention(kv_heads=4, multiprocessors=132, shared_read=shared_read)
    cost = CostModel(cost.artifact.model_copy(update={"attention": attention}))
    engine = EngineConfig(num_gpu_blocks=10_000, max_model_len=8192, max_num_batched_tokens=16_384, enable_prefix_caching=True)
    content = PromptContent.build([[(0 if heads else row, 512), (100 + row, 128)] for row in range(n)])
    # The first is computed before the others come, so that they find its head.
    arrival_ns = np.array([0, *[10_000_000] * (n - 1)])
    lengths = np.full(n, 640), np.full(n, 300)
    requests = RequestTable.build(arrival_ns, *lengths, max_tokens=lengths[1], content=content)
    result = simulate(Scenario(Workload(requests, OpenLoop()), engine, cost, stride=stride))
    return float(result.finish_ns.max())


def test_what_is_read_again_costs_as_the_model_says() -> None:
    apart, shared, cheap = served(0.25, heads=False), served(1.0, heads=True), served(0.25, heads=True)
    assert served(1.0, heads=False) == apart
    # 19 sequences read 512 tokens again in each of about 300 steps, at three quarters less.
    assert shared - cheap == pytest.approx(300 * 19 * 512 * 0.75 * 100, rel=0.03)
    assert served(0.25, heads=True, stride=1) == cheap


# -- prompts in service ---------------------------------------------------------------------------------------------------


def sustained_rows(longer: float) -> list[dict[str, object]]:
    chunks = [{"prefill_tokens": tokens, "gpu_s": 20e-6 * tokens * (1 + longer)} for tokens in (2048, 8192)]
    rows = [
        chunk
        | {"point": f"sustained 1×{chunk['prefill_tokens']}@0", "prefill_seqs": 1, "prefill_context_tokens": chunk["prefill_tokens"]}
        | {"prefill_attention_tokens": chunk["prefill_tokens"], "padded_tokens": chunk["prefill_tokens"], "graph_mode": "NONE"}
        for chunk in chunks
    ]
    waited = rows[0] | {"queued": False, "gpu_s": 1.0}
    return [*rows * 5, waited]


def model() -> StepTimeRegressor:
    """20 µs a token."""
    steps = np.zeros((10, len(StepFeatures._fields)), np.int64)
    steps[:, StepFeatures._fields.index("padded_tokens")] = np.arange(1, 11) * 1000
    return StepTimeRegressor(("padded_tokens",), {}, window=1).fit(steps, 20_000.0 * np.arange(1, 11) * 1000)


@pytest.mark.parametrize("longer", [0.04, 0.1])
def test_prompts_one_after_the_other_tell_what_a_token_takes_longer(longer: float) -> None:
    assert sustained_ns(raw(sustained_rows(longer)), None, model()) == pytest.approx(20_000 * longer, rel=1e-3)


def test_it_is_never_less_and_unknown_where_it_was_not_measured() -> None:
    assert sustained_ns(raw(sustained_rows(-0.1)), None, model()) == 0.0
    assert sustained_ns(raw(sharing_rows(12.0, 8.0)), None, model()) is None


def test_every_token_of_a_prompt_takes_longer_and_nothing_else_does() -> None:
    plain = cost_model({"one": 1_000, "padded_tokens": 10.0})
    longer = CostModel(plain.artifact.model_copy(update={"sustained_ns": 3.0}))
    prompt = StepFeatures(1, 100, 100, 5050, padded_tokens=100, graph_mode=GraphMode.NONE)
    decode = StepFeatures(decode_seqs=8, decode_context_tokens=800, padded_tokens=8)
    assert longer.gpu_ns(prompt) == plain.gpu_ns(prompt) + 300
    assert longer.gpu_ns(decode) == plain.gpu_ns(decode)
    assert whole_budget_ns(longer.artifact) == whole_budget_ns(plain.artifact)


def test_profiles_that_tell_are_told_from_those_that_follow_them() -> None:
    sources = {CostModel.load(path).artifact.provenance.sustained for path in H200}
    own = sum(CostModel.load(path).artifact.provenance.sustained == OWN for path in H200)
    assert sources == {OWN, f"the median of {own} profiles of this GPU"}


@pytest.mark.parametrize(("budget", "chunks"), [(8192, {2048, 8128, 8192}), (1024, {960, 1024}), (64, {64}), (16, {16})])
def test_prompts_without_end_take_the_whole_budget_and_what_decodes_leave_of_it(budget: int, chunks: set[int]) -> None:
    points = grid(Limits(32768, 1024, budget, 66910, 16), ["sustained"])
    assert {point.chunk for point in points} == chunks
    assert {point.batch for point in points} == ({0, 64} if budget > 64 else {0})
