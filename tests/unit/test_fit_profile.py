"""A cost model from a profile: what is put into made-up measurements comes out again."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from profiler.fit_profile import fit_profile, main
from profiler.profiled import read_profile
from simulator.cost import CostModel, StepFeatures
from simulator.engine import GraphMode
from simulator.errors import UserError

ENGINE = {
    "name": "vllm", "version": "0.26.0", "max_model_len": 32768, "max_num_batched_tokens": 8192, "max_num_seqs": 1024, "block_size": 16,
    "num_gpu_blocks": 60000, "gpu_memory_utilization": 0.92, "async_scheduling": True,
}  # fmt: skip
META = {
    "gpu": "h100-sxm", "model": "r1-distill-qwen-32b", "weights": "awq", "weight_values": "dummy", "kv_cache_dtype": "auto",
    "tensor_parallel_size": 1, "engine": ENGINE,
}  # fmt: skip
FULL_LAUNCH_NS, EAGER_LAUNCH_NS, PREFILL_LAUNCH_NS = 2e6, 9e6, 1e6


def gpu_ns(batch: int, context: int, chunk: int, mode: str) -> float:
    tokens = batch + chunk
    return (
        8e6
        + 2000 * tokens
        + 1500 * max(tokens - 256, 0)
        + 3e4 * batch
        + 40 * batch * context
        + (0.3 * chunk * chunk + 2e6 * (mode == "NONE")) * (chunk > 0)
    )


def row(batch: int, context: int, chunk: int, *, held: bool) -> dict[str, object]:
    mode = "FULL" if not chunk else "PIECEWISE" if batch + chunk <= 512 else "NONE"
    kind = "mixed" if batch and chunk else "prefill" if chunk else "decode"
    launch_ns = FULL_LAUNCH_NS if mode == "FULL" else EAGER_LAUNCH_NS + PREFILL_LAUNCH_NS
    # Unheld, a step with a prompt is seen with gaps: its GPU time is wrong, and marked so.
    seen = held or not chunk
    return {
        "point": f"{kind} {batch}×{context}+{chunk}", "kind": kind, "graph_mode": mode, "padded_tokens": batch + chunk,
        "prefill_seqs": int(chunk > 0), "prefill_tokens": chunk, "prefill_context_tokens": chunk, "prefill_attention_tokens": chunk * chunk,
        "decode_seqs": batch, "decode_context_tokens": batch * context, "decode_context_max_tokens": context * (batch > 0),
        "verify_tokens": 0,
        "gpu_s": gpu_ns(batch, context, chunk, mode) * (1 if seen else 3) / 1e9, "launch_s": launch_ns * (5 if held else 1) / 1e9,
        "schedule_cpu_s": 2e-4, "update_cpu_s": 1e-4, "hold_s": 0.02 if held else 0.0, "queued": seen,
    }  # fmt: skip


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    folder = tmp_path / "profile"
    folder.mkdir()
    cells = [(b, c, 0) for b in (1, 4, 16, 64, 128, 256, 512) for c in (64, 512, 2048, 4096, 8192)]
    cells += [(b, 1024, p) for b in (0, 8, 64, 256) for p in (32, 128, 384, 640, 1024, 2048, 4096)]
    rows = [row(*cell, held=held) for cell in cells for held in (False, True) for _ in range(3)]
    pd.DataFrame(rows).to_csv(folder / "steps.csv.gz", index=False)
    (folder / "profile.json").write_text(json.dumps(META))
    return folder


def test_the_laws_behind_the_measurements_are_found(profile: Path) -> None:
    model = CostModel(fit_profile(profile)[0])
    decode = StepFeatures(decode_seqs=100, decode_context_tokens=300_000, decode_context_max_tokens=3000, padded_tokens=100)
    assert model.gpu_ns(decode) == pytest.approx(gpu_ns(100, 3000, 0, "FULL"), rel=0.02)
    mixed = StepFeatures(
        prefill_seqs=1, prefill_tokens=1500, prefill_context_tokens=1500, prefill_attention_tokens=1500**2,
        decode_seqs=64, decode_context_tokens=65536, decode_context_max_tokens=1024, padded_tokens=1564, graph_mode=GraphMode.NONE,
    )  # fmt: skip
    assert model.gpu_ns(mixed) == pytest.approx(gpu_ns(64, 1024, 1500, "NONE"), rel=0.02)
    assert model.launch_ns(decode) == pytest.approx(FULL_LAUNCH_NS, rel=0.02)
    assert model.launch_ns(mixed) == pytest.approx(EAGER_LAUNCH_NS + PREFILL_LAUNCH_NS, rel=0.02)
    assert model.artifact.overheads.schedule_ns == 300_000


def test_errors_are_told_by_kind_and_by_what_was_left_out(profile: Path) -> None:
    rows = {error.judged_on: error for error in fit_profile(profile)[0].error}
    assert {name.split()[0] for name in rows} == {"decode", "prefill", "mixed"}
    assert all(error.median_abs < 0.015 for error in rows.values())
    assert rows["decode steps, contexts left out"].n < rows["decode steps, in-sample"].n


def test_rows_with_gaps_count_for_the_launch_only(profile: Path) -> None:
    table = read_profile(profile).table
    assert np.allclose(
        table["launch_ns"].dropna(),
        np.where(table["graph_mode"] == int(GraphMode.FULL), FULL_LAUNCH_NS, EAGER_LAUNCH_NS + PREFILL_LAUNCH_NS),
    )
    expected = [
        gpu_ns(int(r.decode_seqs), int(r.decode_context_max_tokens), int(r.prefill_tokens), GraphMode(int(r.graph_mode)).name)
        for r in table.itertuples()
    ]
    assert np.allclose(table["gpu_ns"], expected)


def test_without_asynchronous_scheduling_launches_say_nothing(profile: Path) -> None:
    (profile / "profile.json").write_text(json.dumps(META | {"engine": ENGINE | {"async_scheduling": False}}))
    assert all(regime.launch_ns == {} for regime in fit_profile(profile)[0].step.values())


def test_the_same_profile_gives_the_same_bytes(profile: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert main([f"profile={profile}", f"models={tmp_path / name}"]) == 0
    path = Path("h100-sxm") / "r1-distill-qwen-32b" / "awq-kv_auto-tp1.json"
    assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
    shared = json.loads((tmp_path / "a" / "h100-sxm" / "aliases.json").read_text())
    assert shared["qwq-32b"] == "r1-distill-qwen-32b"
    assert "r1-distill-qwen-32b" not in shared


@pytest.mark.parametrize("lost", ["profile.json", "steps.csv.gz"])
def test_a_missing_file_is_named(profile: Path, lost: str) -> None:
    (profile / lost).unlink()
    with pytest.raises(UserError, match=lost):
        read_profile(profile)


@pytest.mark.parametrize("arguments", [[], ["profile=a", "speed=3"], ["nonsense"], ["profile=/nope"]])
def test_a_mistake_exits_2_with_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
