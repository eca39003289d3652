"""A cost model from a profile: what is put into made-up measurements comes out again."""

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from profiler.fit_profile import after_of, fit_profile, main, service_of
from profiler.points import Point
from profiler.profiled import LONG_PROMPT_TOKENS, from_raw
from profiler.raw import Raw
from simulator.artifacts.artifact import Artifact
from simulator.artifacts.models import MODELS, artifacts
from simulator.cost import CostModel
from simulator.engine import GraphMode
from simulator.errors import UserError
from simulator.features import StepFeatures

ENGINE = {
    "name": "vllm", "version": "0.26.0", "max_model_len": 32768, "max_num_batched_tokens": 8192, "max_num_seqs": 1024, "block_size": 16,
    "num_gpu_blocks": 60000, "gpu_memory_utilization": 0.92, "async_scheduling": True,
}  # fmt: skip
META = {
    "gpu": "h100-sxm", "model": "r1-distill-qwen-32b", "weights": "awq", "weight_values": "dummy", "kv_cache_dtype": "auto",
    "tensor_parallel_size": 1, "engine": ENGINE,
}  # fmt: skip
FULL_LAUNCH_NS, EAGER_LAUNCH_NS, PREFILL_LAUNCH_NS = 2e6, 9e6, 1e6
CPU_NS, PREPARE_NS = 3e5, 4e6
SLOW_SIZE, SLOW = 264, 1.5
"""A padded size for which the GPU has a bad kernel."""


def gpu_ns(batch: int, context: int, chunk: int, mode: str) -> float:
    """Weights read, then tiles of 128 rows; attention of the decoding sequences, and of a chunk to itself."""
    tokens = batch + chunk
    tiles = -(-tokens // 128)
    products = (8e6 + 1e6 * min(tiles - 1, 3) + 1.2e4 * max(tokens - 512, 0)) * (SLOW if tokens == SLOW_SIZE else 1)
    return products + 3e4 * batch + 40 * batch * context + 0.6 * chunk * (chunk + 1) / 2 + (1e6 if chunk and mode == "NONE" else 0)


TOGETHER = "mixed 8×1024+1×1024@0"


def row(batch: int, context: int, chunk: int, *, held: bool) -> dict[str, object]:
    mode = "FULL" if not chunk else "PIECEWISE" if batch + chunk <= 512 else "NONE"
    kind = "mixed" if batch and chunk else "prefill" if chunk else "decode"
    launch_ns = FULL_LAUNCH_NS if mode == "FULL" else EAGER_LAUNCH_NS + PREFILL_LAUNCH_NS
    # Unheld, a step with a prompt is seen with gaps: its GPU time is wrong, and marked so.
    seen = held or not chunk
    gaps_ns = 0.0 if seen else PREPARE_NS
    return {
        "point": Point(kind, batch, context, num_chunks=int(chunk > 0), chunk=chunk).name,
        "kind": kind, "graph_mode": mode, "padded_tokens": batch + chunk,
        "prefill_seqs": int(chunk > 0), "prefill_tokens": chunk, "prefill_context_tokens": chunk, "prefill_attention_tokens": chunk * chunk,
        "decode_seqs": batch, "decode_context_tokens": batch * context, "decode_context_max_tokens": context * (batch > 0),
        "verify_tokens": 0,
        "gpu_s": (gpu_ns(batch, context, chunk, mode) + gaps_ns) / 1e9, "launch_s": launch_ns * (5 if held else 1) / 1e9,
        "schedule_cpu_s": 2e-4, "update_cpu_s": 1e-4, "hold_s": 0.02 if held else 0.0, "queued": seen,
    }  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profile")
    cells = [(b, c, 0) for b in (1, 4, 16, 64, 128, 136, 256, SLOW_SIZE, 320, 384, 400, 512) for c in (64, 512, 2048, 4096, 8192)]
    cells += [(b, 1024, p) for b in (0, 8, 64, 256) for p in (32, 128, 384, 640, 1024, 2048, 4096)]
    rows = [row(*cell, held=held) for cell in cells for held in (False, True) for _ in range(3)]
    pd.DataFrame(rows).to_csv(folder / "steps.csv.gz", index=False)
    (folder / "profile.json").write_text(json.dumps(META))
    return folder


@pytest.fixture
def profile(measured: Path, tmp_path: Path) -> Path:
    """One to be changed."""
    return shutil.copytree(measured, tmp_path / "profile")


@pytest.fixture(scope="module")
def unchanged(measured: Path) -> CostModel:
    """Fitted to what was measured."""
    return CostModel(fitted(measured))


def fitted(profile: Path) -> Artifact:
    return fit_profile(Raw.read(profile))[0]


def decode(batch: int, context: int) -> StepFeatures:
    """Of equal contexts, as they were measured."""
    return StepFeatures(
        decode_seqs=batch, decode_context_tokens=batch * context, decode_context_max_tokens=context, padded_tokens=batch,
        decode_in_step_seqs=batch if batch > 1 else 0,
    )  # fmt: skip


def mixed(batch: int, chunk: int, mode: GraphMode) -> StepFeatures:
    return StepFeatures(
        prefill_seqs=1, prefill_tokens=chunk, prefill_context_tokens=chunk, prefill_attention_tokens=chunk * (chunk + 1) // 2,
        decode_seqs=batch, decode_context_tokens=batch * 1024, decode_context_max_tokens=1024, padded_tokens=batch + chunk, graph_mode=mode,
    )  # fmt: skip


@pytest.mark.parametrize(("batch", "context"), [(1, 3000), (64, 1000), (128, 3000), (136, 3000), (200, 3000), (256, 500), (512, 6000)])
def test_decode_times_are_found_between_what_was_measured(unchanged: CostModel, batch: int, context: int) -> None:
    assert unchanged.gpu_ns(decode(batch, context)) == pytest.approx(gpu_ns(batch, context, 0, "FULL"), rel=0.02)


def test_what_equal_contexts_cost_is_none_of_traffics(profile: Path) -> None:
    """A time a sequence put into the steps of equal contexts comes out as theirs, where there are others to tell."""
    in_step_ns = 4_000
    table = pd.read_csv(profile / "steps.csv.gz")
    alone = (table["decode_seqs"] > 1) & (table["prefill_seqs"] == 0)
    equal = table.assign(gpu_s=table["gpu_s"] + in_step_ns * table["decode_seqs"].where(alone, 0) / 1e9)
    uneven = table[alone].assign(point=[Point("decode", n, 16384, "traffic").name for n in table[alone]["decode_seqs"]])
    pd.concat([equal, uneven]).to_csv(profile / "steps.csv.gz", index=False)
    model = CostModel(fitted(profile))
    for batch in (16, 128, 256):
        of_profile = decode(batch, 2048)
        traffic = of_profile._replace(decode_in_step_seqs=0)
        assert model.gpu_ns(of_profile) - model.gpu_ns(traffic) == pytest.approx(in_step_ns * batch, rel=0.25)
        assert model.gpu_ns(traffic) == pytest.approx(gpu_ns(batch, 2048, 0, "FULL"), rel=0.03)


def test_a_batch_that_waited_in_one_point_is_known_by_another(profile: Path, unchanged: CostModel) -> None:
    """Of several GPUs, one waits for a launch on another, and nothing else tells: the same batch was quicker elsewhere."""
    table = pd.read_csv(profile / "steps.csv.gz")
    same = table[table["point"] == "decode 512×64"].assign(point="sampling 512×64", kind="sampling")
    pd.concat([table, same.assign(gpu_s=1.4 * same["gpu_s"])]).assign(behind_s=0.0).to_csv(profile / "steps.csv.gz", index=False)
    batch = decode(512, 64)
    assert CostModel(fitted(profile)).gpu_ns(batch) == pytest.approx(unchanged.gpu_ns(batch), rel=1e-3)


def test_a_bad_kernel_stays_where_it_is(unchanged: CostModel) -> None:
    for batch in (256, SLOW_SIZE, 272, 320):
        assert unchanged.gpu_ns(decode(batch, 1024)) == pytest.approx(gpu_ns(batch, 1024, 0, "FULL"), rel=0.02)


def test_times_with_prompts_are_found_between_what_was_measured(unchanged: CostModel) -> None:
    for chunk in (1500, 3000):
        assert unchanged.gpu_ns(mixed(64, chunk, GraphMode.NONE)) == pytest.approx(gpu_ns(64, 1024, chunk, "NONE"), rel=0.02)
    assert unchanged.gpu_ns(mixed(64, 384, GraphMode.PIECEWISE)) == pytest.approx(gpu_ns(64, 1024, 384, "PIECEWISE"), rel=0.02)


def test_the_thread_works_before_and_while_it_launches(unchanged: CostModel) -> None:
    assert unchanged.launch(decode(100, 3000))[:2] == pytest.approx((CPU_NS + FULL_LAUNCH_NS, CPU_NS + FULL_LAUNCH_NS), rel=0.02)
    assert unchanged.launch(decode(100, 3000)).hand_over_ns is None
    eager_ns = CPU_NS + EAGER_LAUNCH_NS + PREFILL_LAUNCH_NS
    assert unchanged.launch(mixed(64, 1500, GraphMode.NONE))[:2] == pytest.approx((CPU_NS + PREPARE_NS, eager_ns), rel=0.02)
    assert unchanged.artifact.overheads.schedule_ns == 0


def test_errors_are_told_by_kind_and_by_what_was_left_out(unchanged: CostModel) -> None:
    artifact = unchanged.artifact
    rows = {error.judged_on: error for error in artifact.error}
    assert {name.split()[0] for name in rows} - {"all"} == {"decode", "prefill", "mixed"} == set(artifact.residuals)
    assert all(error.median_abs < 0.015 for name, error in rows.items() if "in-sample" in name)
    assert rows["decode steps, contexts left out"].n < rows["decode steps, in-sample"].n
    for quantiles in artifact.residuals.values():
        assert list(quantiles.values()) == sorted(quantiles.values())


def test_rows_with_gaps_count_for_the_launch_only(profile: Path) -> None:
    table = from_raw(Raw.read(profile)).table
    assert np.allclose(
        table["launch_ns"].dropna(),
        np.where(table["graph_mode"] == int(GraphMode.FULL), FULL_LAUNCH_NS, EAGER_LAUNCH_NS + PREFILL_LAUNCH_NS),
    )
    expected = [
        gpu_ns(int(r.decode_seqs), int(r.decode_context_max_tokens), int(r.prefill_tokens), GraphMode(int(r.graph_mode)).name)
        for r in table.itertuples()
    ]
    # The files keep tenths of microseconds.
    assert np.allclose(table["gpu_ns"], expected, rtol=0, atol=51)


def test_a_launch_that_outlasted_its_hold_does_not_count(profile: Path) -> None:
    """The GPU waited for it, though it ended long after it: its like were much quicker."""
    steps = pd.read_csv(profile / "steps.csv.gz").assign(launch_end_s=1.0, update_s=2.0)
    held = steps[(steps["hold_s"] > 0) & (steps["prefill_seqs"] > 0)].iloc[[0]]
    for waited, counts in ((1.1, True), (1.8, False)):
        late = held.assign(gpu_s=held["gpu_s"] * waited, queued=False)
        pd.concat([steps, late]).to_csv(profile / "steps.csv.gz", index=False)
        table = from_raw(Raw.read(profile)).table.set_index("point")
        singles = table.loc[held["point"].item(), "single_gpu_ns"]
        assert (max(singles) / min(singles) == pytest.approx(waited, rel=1e-3)) is counts


def test_decodes_beside_long_prompts_are_left_out(profile: Path) -> None:
    steps = pd.read_csv(profile / "steps.csv.gz")
    for chunk, kept in ((LONG_PROMPT_TOKENS, True), (LONG_PROMPT_TOKENS + 1, False)):
        beside = pd.DataFrame([row(8, 1024, chunk, held=True), row(8, 1024, 0, held=True)]).assign(point=TOGETHER)
        pd.concat([steps, beside]).to_csv(profile / "steps.csv.gz", index=False)
        kinds = from_raw(Raw.read(profile)).table.set_index("point").loc[[TOGETHER], "kind"]
        assert ("decode" in kinds.tolist()) is kept


def test_the_chunks_of_a_step_attend_to_themselves(profile: Path) -> None:
    """Three chunks of 4 tokens that follow 10 others."""
    chunks = row(0, 0, 12, held=True) | {"prefill_seqs": 3, "prefill_context_tokens": 42, "prefill_attention_tokens": 3 * 4 * 14}
    pd.DataFrame([chunks]).to_csv(profile / "steps.csv.gz", index=False)
    pairs = 3 * sum(range(11, 15))
    assert from_raw(Raw.read(profile)).table["prefill_attention_tokens"].tolist() == [pairs]


def test_where_a_launch_waits_the_thread_only_schedules(profile: Path) -> None:
    (profile / "profile.json").write_text(json.dumps(META | {"engine": ENGINE | {"async_scheduling": False}}))
    launch = CostModel(fitted(profile)).launch(decode(100, 3000))
    assert launch[:2] == pytest.approx((CPU_NS, CPU_NS), rel=0.02)
    assert launch.hand_over_ns is None


def test_with_several_gpus_the_thread_hands_over_and_workers_launch(profile: Path) -> None:
    (profile / "profile.json").write_text(json.dumps(META | {"tensor_parallel_size": 2}))
    model = CostModel(fitted(profile))
    assert model.launch(decode(100, 3000)) == pytest.approx((FULL_LAUNCH_NS, FULL_LAUNCH_NS, CPU_NS), rel=0.02)
    eager_ns = EAGER_LAUNCH_NS + PREFILL_LAUNCH_NS
    assert model.launch(mixed(64, 1500, GraphMode.NONE)) == pytest.approx((PREPARE_NS, eager_ns, CPU_NS), rel=0.02)


def test_without_asynchronous_scheduling_all_that_lies_between_two_steps_counts(profile: Path) -> None:
    """Drafts are handed over between them, too, which neither choosing a batch nor handling a result is."""
    steps = pd.read_csv(profile / "steps.csv.gz")
    begin_s = steps.index * 1.0
    between_s = np.where(steps["prefill_seqs"] > 0, 0.5, 4e-4 + 3e-6 * steps["decode_seqs"])
    steps = steps.assign(launch_start_s=begin_s, launch_end_s=begin_s + 1 - between_s, update_s=begin_s + 1)
    steps.to_csv(profile / "steps.csv.gz", index=False)
    (profile / "profile.json").write_text(json.dumps(META | {"engine": ENGINE | {"async_scheduling": False}}))
    model = CostModel(fitted(profile))
    assert model.launch(decode(100, 3000))[:2] == pytest.approx((7e5, 7e5), rel=0.02)


def test_speculation_is_in_the_name(profile: Path, tmp_path: Path) -> None:
    speculative = {"method": "eagle3", "num_speculative_tokens": 3}
    (profile / "profile.json").write_text(json.dumps(META | {"speculative": speculative}))
    assert main([f"profile={profile}", f"models={tmp_path / 'models'}"]) == 0
    path = tmp_path / "models" / "h100-sxm" / "r1-distill-qwen-32b" / "awq-kv_auto-tp1-eagle3-k3.json"
    assert CostModel.load(path).artifact.speculation == "eagle3-k3"


def test_an_artifact_is_fitted_again_to_the_measurements_beside_it(profile: Path, tmp_path: Path) -> None:
    assert main([f"profile={profile}", f"models={tmp_path / 'models'}"]) == 0
    path = tmp_path / "models" / "h100-sxm" / "r1-distill-qwen-32b" / "awq-kv_auto-tp1.json"
    first = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    assert main([f"profile={path}", f"models={tmp_path / 'models'}"]) == 0
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == first
    assert len(first) == 3


def test_packed_measurements_stay_packed(profile: Path, tmp_path: Path) -> None:
    assert main([f"profile={profile}", f"models={tmp_path}"]) == 0
    path = tmp_path / "h100-sxm" / "r1-distill-qwen-32b" / "awq-kv_auto-tp1.json"
    steps = path.with_suffix(".steps.csv.gz")
    otherwise_packed = gzip.compress(gzip.decompress(steps.read_bytes()), compresslevel=1, mtime=1)
    steps.write_bytes(otherwise_packed)
    assert main([f"profile={path}", f"models={tmp_path}"]) == 0
    assert steps.read_bytes() == otherwise_packed
    steps.write_bytes(otherwise_packed[:-20])
    assert main([f"profile={profile}", f"models={tmp_path}"]) == 0
    assert gzip.decompress(steps.read_bytes()) == gzip.decompress(otherwise_packed)


SHIPPED = [path for path in artifacts() if path.with_suffix(".steps.csv.gz").is_file()]


def leaves(document: object, at: str = "") -> Iterator[tuple[str, object]]:
    """All that a JSON document says, each with the place where it says so."""
    if isinstance(document, dict | list):
        for name, value in document.items() if isinstance(document, dict) else enumerate(document):
            yield from leaves(value, f"{at}/{name}")
    else:
        yield at, document


def figures_and_texts(artifact: Artifact) -> tuple[dict[str, float], dict[str, object]]:
    """The figures of an artifact, and all else."""
    said = dict(leaves(artifact.model_dump(mode="json")))
    figures = {at: value for at, value in said.items() if isinstance(value, int | float)}
    return figures, {at: value for at, value in said.items() if at not in figures}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(MODELS).with_suffix("").as_posix())
def test_a_shipped_artifact_is_that_of_its_measurements(path: Path) -> None:
    """All of it, its errors too, whatever the CPU and the versions of the libraries that fit."""
    raw, shipped = Raw.read(path), CostModel.load(path).artifact
    assert raw.sha256 == shipped.provenance.sha256
    assert path.with_suffix(".steps.csv.gz").stat().st_size < 400_000
    again = fit_profile(raw, service_of(path, raw, MODELS), after_of(path))[0]
    figures, texts = zip(*(figures_and_texts(artifact) for artifact in (again, shipped)), strict=True)
    assert figures[0] == pytest.approx(figures[1], rel=1e-3, abs=2e-4)
    assert texts[0] == texts[1]


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
        from_raw(Raw.read(profile))


@pytest.mark.parametrize("arguments", [[], ["profile=a", "speed=3"], ["nonsense"], ["profile=/nope"]])
def test_a_mistake_exits_2_with_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
