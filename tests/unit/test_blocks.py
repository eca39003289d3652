"""A start at other settings, against the blocks predicted for them."""

import json
from pathlib import Path

import pytest

from profiler.blocks import main
from simulator.artifacts.models import MODELS
from simulator.cost import CostModel

SHIPPED = MODELS / "h100-sxm" / "r1-distill-qwen-7b" / "bf16-kv_auto-tp1.json"


def started(folder: Path, **engine: float) -> Path:
    """`profile.json` of a start."""
    memory = CostModel.load(SHIPPED).artifact.memory
    own = {name: getattr(memory, name) for name in ("gpu_memory_utilization", "max_num_batched_tokens", "max_num_seqs", "num_gpu_blocks")}
    meta = {"gpu": "h100-sxm", "model": "r1-distill-qwen-7b", "weights": "bf16", "kv_cache_dtype": "auto", "tensor_parallel_size": 1}
    (folder / "profile.json").write_text(json.dumps(meta | {"engine": own | engine}))
    return folder


def test_a_start_agrees_or_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """7 % less of 79 GiB, and three quarters of the activations: by hand from vLLM's account of the other start."""
    memory = CostModel.load(SHIPPED).artifact.memory
    assert memory.parts is not None
    less = {"gpu_memory_utilization": memory.gpu_memory_utilization - 0.07, "max_num_batched_tokens": 2048}
    peaks = {(tokens, seqs): peak for tokens, seqs, peak in memory.parts.activation_peaks}
    freed = peaks[memory.max_num_batched_tokens, memory.max_num_seqs] - peaks[2048, memory.max_num_seqs]
    by_hand = memory.num_gpu_blocks - (0.07 * memory.parts.total_bytes - freed) / memory.parts.bytes_per_block
    assert main([f"profile={started(tmp_path, **less, num_gpu_blocks=round(by_hand))}"]) == 0
    assert f"vLLM reported {round(by_hand):,} blocks" in capsys.readouterr().out
    assert main([f"profile={started(tmp_path, **less, num_gpu_blocks=round(by_hand * 1.01))}"]) == 1
    assert "(-0.9" in capsys.readouterr().out or "(-1.0" in capsys.readouterr().out


def test_the_same_settings_say_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"profile={started(tmp_path)}"]) == 2
    assert "says nothing about others" in capsys.readouterr().err
    assert main([f"profile={tmp_path / 'nowhere'}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert main([]) == 2
