"""From the measurements of an engine with drafts to its cost model: made-up times on the grid that is really measured."""

import json
from pathlib import Path

import pandas as pd
import pytest

from profiler.fit_profile import main
from profiler.grid import grid
from profiler.points import Limits, Point
from simulator.compose import CONF
from simulator.config import load
from simulator.cost import CostModel
from simulator.drafts.crossover import crossover_of
from simulator.engine import EngineConfig, SpeculativeConfig
from simulator.features import StepFeatures
from simulator.simulate import simulate

DRAFTS = 3
ENGINE = EngineConfig(num_gpu_blocks=63_000, speculative=SpeculativeConfig(method="eagle3", num_speculative_tokens=DRAFTS))
PLAIN = EngineConfig(num_gpu_blocks=63_000)
LIMITS = Limits(32768, 1024, 8192, ENGINE.usable_blocks, ENGINE.block_size, 1 + DRAFTS, graph_sizes=(1,))
META = {
    "gpu": "h100-sxm", "model": "r1-distill-qwen-7b", "weights": "bf16", "weight_values": "dummy", "kv_cache_dtype": "auto",
    "tensor_parallel_size": 1,
    "engine": {
        "name": "vllm", "version": "0.26.0", "max_model_len": 32768, "max_num_batched_tokens": 8192, "max_num_seqs": 1024, "block_size": 16,
        "num_gpu_blocks": ENGINE.num_gpu_blocks, "gpu_memory_utilization": 0.92, "async_scheduling": True,
    },
}  # fmt: skip
DRAFTING_NS, PLAIN_LAUNCH_NS = 9e5, 2e6


def features(engine: EngineConfig, batch: int, context_sum: int, longest: int, chunks: int, chunk: int, start: int) -> StepFeatures:
    """Of the step that an engine runs of so many decoding sequences and chunks."""
    verify = batch * (engine.decode_query_len - 1)
    tokens = chunks * chunk
    padded, mode = engine.graphs.pad(tokens + batch + verify, not chunks)
    end = start + chunk
    attention = chunks * (chunk * end - chunk * (chunk - 1) // 2)
    return StepFeatures(chunks, tokens, chunks * end, attention, batch, context_sum, longest, verify, padded, mode)


def forward_ns(step: StepFeatures) -> float:
    """Weights read while up to 256 rows are multiplied, then arithmetic by tiles; attention; without a graph a little more."""
    products = 5e6 + 1.1e4 * max(128 * -(-step.padded_tokens // 128) - 256, 0)
    attention = 4.0 * step.decode_context_tokens + 0.3 * step.prefill_attention_tokens
    return products + attention + (3e5 if step.graph_mode == 0 else 0)


def drafting_ns(step: StepFeatures) -> float:
    """A pass over the step's tokens, and two over one token a sequence."""
    return DRAFTING_NS + 400 * step.padded_tokens + 900 * step.decode_seqs


def sampling_ns(step: StepFeatures) -> float:
    """The top-p kernel takes 132 positions at a time."""
    return 2e5 + 1.5e5 * -(-step.sampled_tokens // 132)


def step_ns(step: StepFeatures) -> float:
    return forward_ns(step) + sampling_ns(step) + (drafting_ns(step) if step.verify_tokens or step.prefill_seqs else 0)


def rows(point: Point, engine: EngineConfig) -> list[dict[str, object]]:
    contexts = point.contexts
    shape = (point.batch, sum(contexts), max(contexts, default=0))
    kinds = [(*shape, point.num_chunks, point.chunk, point.start)] + [(*shape, 0, 0, 0)] * (2 * (point.kind == "mixed"))
    found = []
    for of in kinds:
        step = features(engine, *of)
        draft_ns = drafting_ns(step) if engine.speculative else 0.0
        found.append(
            {
                **step._asdict(), "point": point.name, "kind": point.kind, "graph_mode": step.graph_mode.name,
                # Recorded is every chunk against its end, not the pairs.
                "prefill_attention_tokens": of[3] * of[4] * (of[4] + of[5]),
                "gpu_s": (forward_ns(step) + draft_ns + sampling_ns(step)) / 1e9, "forward_s": forward_ns(step) / 1e9, "logits_s": 0.0,
                "sample_s": sampling_ns(step) / 1e9, "draft_s": draft_ns / 1e9, "peaked": True, "launch_s": PLAIN_LAUNCH_NS / 1e9,
                "schedule_cpu_s": 1e-4, "update_cpu_s": 1e-4, "hold_s": 0.0, "queued": True,
            }
        )  # fmt: skip
    return found


def fitted(folder: Path, engine: EngineConfig, limits: Limits, speculative: dict[str, object] | None) -> Path:
    """What the command makes of a profile's folder."""
    profile = folder / f"profile-{bool(speculative)}"
    profile.mkdir()
    points = grid(limits, ["decode", "prefill", "mixed", "sampling"])
    pd.DataFrame([row for point in points for row in rows(point, engine)]).to_csv(profile / "steps.csv.gz", index=False)
    (profile / "profile.json").write_text(json.dumps(META | {"speculative": speculative}))
    models = folder / "models"
    assert main([f"profile={profile}", f"models={models}"]) == 0
    end = f"-eagle3-k{DRAFTS}" if speculative else ""
    return models / "h100-sxm" / "r1-distill-qwen-7b" / f"bf16-kv_auto-tp1{end}.json"


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(without drafts, with drafts)."""
    folder = tmp_path_factory.mktemp("fit")
    graph_sizes = (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))
    plain = Limits(32768, 1024, 8192, PLAIN.usable_blocks, PLAIN.block_size, graph_sizes=graph_sizes)
    asked = {"method": "eagle3", "num_speculative_tokens": DRAFTS}
    return fitted(folder, PLAIN, plain, None), fitted(folder, ENGINE, LIMITS, asked)


@pytest.mark.parametrize("batch", [1, 3, 12, 20, 36, 44, 60, 70, 90, 104, 127, 129, 150, 200, 240, 300])
def test_verify_steps_are_found_between_what_was_measured(artifacts: tuple[Path, Path], batch: int) -> None:
    step = features(ENGINE, batch, batch * 2500, 6000, 0, 0, 0)
    assert step.verify_tokens == DRAFTS * batch
    assert CostModel.load(artifacts[1]).gpu_ns(step) == pytest.approx(step_ns(step), rel=0.04)


def test_prompts_are_drafted_for_too(artifacts: tuple[Path, Path]) -> None:
    for batch, chunk in ((0, 300), (30, 150), (100, 600)):
        step = features(ENGINE, batch, batch * 2048, 2048 * (batch > 0), 1, chunk, 0)
        assert CostModel.load(artifacts[1]).gpu_ns(step) == pytest.approx(step_ns(step), rel=0.06)


def test_the_crossing_is_where_the_made_up_times_have_it(artifacts: tuple[Path, Path]) -> None:
    plain, drafted = artifacts
    overrides = ["opt=eagle3", f"cost_model={drafted}", f"crossover.baseline={plain}", "acceptance={length: 2.5}"]
    found = crossover_of(load(CONF / "crossover.yaml", overrides))
    for batch in (1, 16, 64, 128, 192):
        context = 1200
        without = step_ns(features(PLAIN, batch, batch * context, 4000, 0, 0, 0))
        with_ = step_ns(features(ENGINE, batch, batch * context, 4000, 0, 0, 0)) / found.tokens_per_step
        assert found.speedup[batch - 1] == pytest.approx(without / with_, rel=0.08)


def test_a_service_runs_on_it(artifacts: tuple[Path, Path]) -> None:
    overrides = ["opt=eagle3", f"cost_model={artifacts[1]}", "cluster.num_replicas=1", "run.duration_s=5", "workload.arrivals.rate=5"]
    result = simulate(load(CONF / "simulate.yaml", overrides).scenario())
    assert (result.finish_ns > result.sent_ns).all()
