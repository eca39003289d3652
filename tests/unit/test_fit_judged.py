"""What a fit knows of kernels beforehand, and how it is judged: by the grid, and by the time of traffic."""

import json
from pathlib import Path

import numpy as np
import pytest

from profiler.attention import ChunkAttention
from profiler.exposure import time_shares
from profiler.fit import StepTimeRegressor
from profiler.judge import error_rows, left_out
from profiler.profiled import Profiled, from_raw
from profiler.raw import Raw
from profiler.residual_page import main
from profiler.steps import as_matrix
from profiler.tables import SHAPES, Table
from simulator.artifacts.models import MODELS
from simulator.cost import CostModel
from simulator.features import StepFeatures

SHIPPED = MODELS / "h100-sxm" / "r1-distill-qwen-7b" / "bf16-kv_auto-tp1.json"


@pytest.fixture(scope="module")
def known() -> Profiled:
    return from_raw(Raw.read(SHIPPED)).gpu_known


def products_ns(sizes: np.ndarray) -> np.ndarray:
    """A quantized kernel's: the weights read, then a tile of 256 rows as a whole."""
    return np.where(sizes <= 128, 6e6 + 1e4 * sizes, 2e6 + 3.1e4 * np.ceil(sizes / 256) * 256)


def test_sizes_that_nobody_measured_follow_the_tiles_of_those_that_were() -> None:
    measured = np.array([1, 16, 64, 128, 192, 256, 264, 384, 512, 521, 709, 971, 1330, 1821, 2131, 2917, 4096, 5470, 8192])
    table = Table.of(measured, products_ns(measured))
    model = StepTimeRegressor(table.terms, {}, window=1, priors=table.priors, latent=tuple(SHAPES))
    model.fit(as_matrix(_steps(measured)), products_ns(measured))
    between = np.array([150, 250, 320, 500, 600, 760, 800, 1100, 1500, 2300, 3500, 5000, 7000])
    assert model.predict(as_matrix(_steps(between))) == pytest.approx(products_ns(between), rel=0.03)


def _steps(sizes: np.ndarray) -> StepFeatures:
    zero = np.zeros_like(sizes)
    columns = dict.fromkeys(StepFeatures._fields, zero)
    return StepFeatures(**columns | {"padded_tokens": sizes})


def test_rounds_of_attention_are_those_of_the_measured_chunks() -> None:
    """Chunks of the 7B after 24,576 tokens take 148, 362, 367, 704, 1092 and 1490 ns a token: 0.4, 1, 1, 2, 3 and 4 rounds."""
    attention = ChunkAttention(heads=28, kv_heads=4)
    full = 128 * 132 / 28
    rounds = [(attention.idle_tokens(chunk) + chunk) / full for chunk in (128, 384, 512, 1024, 1536, 2048)]
    assert rounds == pytest.approx([0.4, 1, 1, 2, 3, 4], rel=1e-3)


def test_rows_count_by_their_share_of_the_time(known: Profiled) -> None:
    measured = (known.table["gpu_ns"] + known.table["sample_ns"]).to_numpy(np.float64)
    off = np.where(known.table["kind"] == "decode", 0.02, -0.10)
    predictions = {"made up": measured * (1 + off) - known.sample_ns}
    shares = np.where(known.table["kind"] == "decode", 3.0, 1.0)
    decodes = (known.table["kind"] == "decode").to_numpy()
    shares[decodes] /= shares[decodes].sum() / 0.75
    shares[~decodes] /= shares[~decodes].sum() / 0.25
    alike = {row.judged_on: row for row in error_rows(known, predictions)}
    weighted = {row.judged_on: row for row in error_rows(known, predictions, shares)}
    assert set(alike) == {"decode steps, made up", "prefill steps, made up", "mixed steps, made up"}
    row = weighted["all steps, made up, by time in traffic"]
    assert (row.median_abs, row.p90_abs) == (0.02, 0.1)
    assert row.signed_mean == pytest.approx(0.75 * 0.02 - 0.25 * 0.1, abs=1e-5)


def test_equal_weights_give_the_usual_quantiles(known: Profiled) -> None:
    random = np.random.default_rng(0).normal(0, 0.02, len(known.table))
    measured = (known.table["gpu_ns"] + known.table["sample_ns"]).to_numpy(np.float64)
    [row] = [r for r in error_rows(known, {"x": measured * (1 + random) - known.sample_ns}) if r.judged_on.startswith("decode")]
    its = np.abs(random[(known.table["kind"] == "decode").to_numpy()])
    assert (row.median_abs, row.p90_abs) == pytest.approx(tuple(np.quantile(its, [0.5, 0.9])), abs=1e-5)


def test_traffic_spends_its_time_in_decode_steps_of_usual_contexts(known: Profiled) -> None:
    artifact = CostModel.load(SHIPPED).artifact
    shares = time_shares(artifact, known)
    assert shares.sum() == pytest.approx(1.0)
    assert np.array_equal(shares, time_shares(artifact, known))
    by_kind = known.table.assign(share=shares).groupby("kind")["share"].sum()
    assert by_kind["decode"] > 0.9
    assert by_kind["mixed"] > 0
    contexts = known.table["decode_context_tokens"] / known.table["decode_seqs"].clip(lower=1)
    assert shares[(contexts > 12_000).to_numpy()].sum() < 0.02, "answers of at most 8,192 tokens"


def test_what_is_left_out_is_not_seen(known: Profiled) -> None:
    """A row that is wrong by half is predicted as if it were not there, and so are those of its size."""
    broken = known.take(np.ones(len(known.table), np.bool_))
    its = (broken.table["point"] == "prefill 1×4096@0").to_numpy()
    assert its.any()
    broken.table.loc[its, "gpu_ns"] *= 1.5
    name = "batch or chunk sizes left out"
    assert left_out(broken)[name][its] == pytest.approx(left_out(known)[name][its], rel=1e-6)


def test_residuals_are_drawn_for_every_kind_of_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "residuals.html"
    assert main([f"profile={SHIPPED}", f"out={out}"]) == 0
    text = out.read_text()
    for title in ("Decode: by sequences", "Prefill: by chunk", "Mixed: by tokens of the batch"):
        assert title in text
    assert json.dumps("prefill 1×4096@0") in text
    assert main(["profile=nowhere"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: profile nowhere: profile.json is missing; `python -m profiler` writes it when a run ends"
    ]
