"""KV blocks under other settings, predicted from one start."""

from pathlib import Path

import pytest

from profiler.raw import Raw
from simulator.artifacts.artifact import Memory
from simulator.artifacts.memory import num_gpu_blocks
from simulator.artifacts.models import MODELS, artifacts
from simulator.compose import CONF
from simulator.config import load
from simulator.cost import CostModel
from simulator.errors import UserError

GIB = 2**30
SECOND = MODELS / "h100-sxm" / "r1-distill-qwen-7b" / "bf16-kv_auto-tp1-second.json"
PARTS = {
    "total_bytes": 80 * GIB, "weights_bytes": 14 * GIB, "activation_peak_bytes": 2 * GIB, "non_torch_bytes": GIB // 4,
    "graphs_estimate_bytes": 0, "bytes_per_block": 2**20,
}  # fmt: skip
START = {
    "num_gpu_blocks": int((0.92 * 80 - 14 - 2 - 0.25) * 1024), "block_size": 16, "max_model_len": 32768, "max_num_batched_tokens": 8192,
    "max_num_seqs": 1024, "parts": PARTS,
}  # fmt: skip
PEAKS = [(2048, 256, 500), (8192, 256, 2000), (2048, 1024, 900), (8192, 1024, 2000)]


def memory(**parts: object) -> Memory:
    return Memory.model_validate({**START, "parts": {**PARTS, **parts}})


def blocks(start: Memory, utilization: float = 0.92, tokens: int = 8192, seqs: int = 1024) -> int:
    found = num_gpu_blocks(start, gpu_memory_utilization=utilization, max_num_batched_tokens=tokens, max_num_seqs=seqs)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "path", [path for path in artifacts() if CostModel.load(path).artifact.memory.parts], ids=lambda p: p.parent.name + "/" + p.stem
)
def test_what_vllm_reported_follows_from_its_account(path: Path) -> None:
    """Of every shipped artifact, predicted from the parts alone: an imperceptibly different setting, so that nothing is read off."""
    start = CostModel.load(path).artifact.memory
    assert blocks(start, start.gpu_memory_utilization + 1e-9) == pytest.approx(start.num_gpu_blocks, abs=1)


def test_more_utilization_adds_its_share_of_the_gpu() -> None:
    assert blocks(memory(), 0.95) - blocks(memory(), 0.90) == pytest.approx(0.05 * 80 * 1024, abs=1)


def test_a_second_start_had_the_predicted_blocks() -> None:
    """vLLM's own number at another utilization, token budget and number of seats, beside the artifact of the first start."""
    measured = Raw.read(SECOND).meta
    account, utilization = measured["memory"], measured["engine"]["gpu_memory_utilization"]
    first = CostModel.load(SECOND.with_name("bf16-kv_auto-tp1.json")).artifact.memory
    assert (utilization, account["max_num_batched_tokens"], account["max_num_seqs"]) == (0.8, 2048, 256)
    predicted = blocks(first, utilization, account["max_num_batched_tokens"], account["max_num_seqs"])
    assert predicted == pytest.approx(account["num_gpu_blocks"], rel=0.002)


def test_a_larger_token_budget_takes_the_difference_of_the_measured_peaks_and_a_smaller_one_frees_nothing() -> None:
    start = memory(activation_peaks=[(tokens, seqs, peak * 2**20) for tokens, seqs, peak in PEAKS])
    at_start = blocks(start)
    assert blocks(start, tokens=16384, seqs=256) == at_start - 2000
    assert blocks(start, tokens=2048) == blocks(start, tokens=5120, seqs=256) == blocks(start, tokens=16, seqs=8) == at_start


def test_a_model_that_does_not_fit_has_less_than_one_block() -> None:
    assert blocks(memory(weights_bytes=141 * GIB), 0.93) < 1


def test_a_trace_tells_too_little() -> None:
    start = Memory.model_validate({**START, "parts": None})
    assert num_gpu_blocks(start, gpu_memory_utilization=0.9, max_num_batched_tokens=8192, max_num_seqs=1024) is None
    assert blocks(start) == START["num_gpu_blocks"]


def test_a_configuration_asks_for_them() -> None:
    def asked(*overrides: str) -> int:
        config = load(CONF / "capacity_planning.yaml", list(overrides))
        return config.engine_config(config.load_cost()).num_gpu_blocks

    assert asked("engine.gpu_memory_utilization=0.9") < asked() < asked("engine.gpu_memory_utilization=0.95")
    assert asked("engine.max_num_batched_tokens=2048") == asked() > asked("engine.max_num_batched_tokens=16384")
    assert asked("engine.gpu_memory_utilization=0.9", "engine.num_gpu_blocks_override=5000") == 5000
    for share, said in (("1.5", "at most 1"), ("x", "at most 1"), ("0.2", "no room for KV blocks")):
        with pytest.raises(UserError, match=said):
            asked(f"engine.gpu_memory_utilization={share}")
