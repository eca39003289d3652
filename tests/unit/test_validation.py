"""`python -m validation`: the errors it prints are those there are, and a prediction reads no latency."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from profiler.export import export
from profiler.fit_trace import fit_trace
from simulator.artifacts.models import find
from simulator.cost import CostModel
from simulator.errors import UserError
from validation.__main__ import TRACES, Settings, main
from validation.compare import compare, relative
from validation.replay import TRACE_FILES, Recording, Replay, quantiles, replay, tpot, write_prediction
from validation.table import as_json, as_text

SHIPPED = TRACES / "h100-r1-distill-qwen-7b-bf16-gamma"
PREDICTED = ["request_id", "ttft_s", "e2e_s", "itl_p50_s", "itl_p99_s", "itl_max_s", "preemptions"]


def run(folder: Path, **options: Any) -> Replay:
    return replay(Recording.read(folder), **{"cost_model": None, "router": "round_robin", "seed": 0, **options})


def edit_meta(folder: Path, **changes: Any) -> None:
    path = folder / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "validation", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cost model fitted to the shipped trace itself."""
    return export(fit_trace(SHIPPED)[0], tmp_path_factory.mktemp("models"))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A copy of the first 60 requests of the shipped trace."""
    folder = tmp_path / "copy"
    shutil.copytree(SHIPPED, folder)
    pd.read_csv(SHIPPED / "requests.csv.gz", dtype={"request_id": str}).head(60).to_csv(folder / "requests.csv.gz", index=False)
    return folder


def test_a_trace_that_no_fit_saw_is_met() -> None:
    errors = as_json(compare(run(SHIPPED)))["errors"]
    for name in ("e2e_s", "tpot_s"):
        assert max(abs(errors[name][statistic]) for statistic in ("mean", "p50", "p90", "p99")) < 0.025, name
    assert abs(errors["duration_s"]) < 0.005
    # Launches take longer in service than in the profiler's process: not modelled yet (CHANGELOG).
    assert abs(errors["ttft_s"]["mean"]) < 0.12
    assert abs(errors["ttft_s"]["p50"]) < 0.12


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_errors_are_relative_to_what_was_measured(trace: Path, factor: float) -> None:
    simulated = run(trace)
    rows = pd.read_csv(trace / "requests.csv.gz", dtype={"request_id": str}).drop(columns=PREDICTED[1:-1])
    measured = rows.merge(pd.DataFrame(simulated.columns()).drop(columns="preemptions"), on="request_id")
    measured[PREDICTED[1:-1]] *= factor
    # Neither the order of the rows nor their number as a string may matter.
    measured.sample(frac=1, random_state=1).to_csv(trace / "requests.csv.gz", index=False)
    comparison = compare(run(trace))
    for name in ("ttft_s", "e2e_s", "tpot_s", "itl_p50_s", "itl_p99_s", "itl_max_s"):
        assert list(comparison.rows[name].errors.values()) == pytest.approx([1 / factor - 1] * 4, abs=1e-9), name
    assert comparison.mean_abs["e2e_s"] == pytest.approx(abs(1 / factor - 1), abs=1e-9)


def test_json_has_the_agreed_form(tmp_path: Path) -> None:
    done = cli(f"trace={SHIPPED}", "format=json", f"out={tmp_path}")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["trace"] == SHIPPED.name
    assert found["in_sample"] is False
    assert {"e2e_s", "tpot_s", "ttft_s", "duration_s", "output_tokens_per_s", "num_gpu_blocks"} <= set(found["errors"])
    for name in ("e2e_s", "tpot_s", "ttft_s"):
        assert set(found["errors"][name]) == {"mean", "p50", "p90", "p99"}
    assert found["errors"]["num_gpu_blocks"] == 0
    assert found["preemptions"] == {"measured": 0, "simulated": 0}


def test_in_sample_is_said_of_the_trace_that_was_fitted_and_of_no_other(trace: Path, fitted: Path) -> None:
    assert not run(SHIPPED).in_sample
    seen = run(SHIPPED, cost_model=fitted)
    assert seen.in_sample
    assert "in-sample" in as_text(compare(seen))
    edit_meta(trace, name="another")
    unseen = run(trace, cost_model=fitted)
    assert not unseen.in_sample
    assert "in-sample" not in as_text(compare(unseen))


def test_a_renamed_copy_of_the_fitted_trace_is_known_by_its_bytes(tmp_path: Path, fitted: Path) -> None:
    copy = tmp_path / "renamed"
    shutil.copytree(SHIPPED, copy)
    recording = Recording.read(copy)
    artifact = CostModel.load(fitted).artifact
    other_source = artifact.model_copy(update={"provenance": artifact.provenance.model_copy(update={"source": "profile"})})
    assert recording.is_source_of(other_source)
    (copy / TRACE_FILES[0]).write_text((copy / TRACE_FILES[0]).read_text() + "\n")
    assert not recording.is_source_of(other_source)


def test_a_prediction_reads_no_latency(trace: Path, tmp_path: Path) -> None:
    write_prediction(run(trace), tmp_path / "with")
    rows = pd.read_csv(trace / "requests.csv.gz", dtype={"request_id": str})
    rows.drop(columns=PREDICTED[1:-1]).to_csv(trace / "requests.csv.gz", index=False)
    (trace / "steps.csv.gz").unlink()
    done = cli("predict", f"trace={trace}", f"out={tmp_path / 'without'}")
    assert done.returncode == 0, done.stderr
    predicted = pd.read_parquet(tmp_path / "without" / "requests.parquet")
    pd.testing.assert_frame_equal(predicted, pd.read_parquet(tmp_path / "with" / "requests.parquet"))
    assert list(predicted.columns) == PREDICTED
    assert set(predicted["request_id"]) == set(rows["request_id"])
    assert (predicted["ttft_s"] <= predicted["e2e_s"]).all()
    summary = json.loads((tmp_path / "without" / "summary.json").read_text())
    assert summary["e2e_s"]["mean"] == pytest.approx(predicted["e2e_s"].mean())
    # Where there are no latencies the prediction is there nevertheless: it is written before they are looked for.
    done = cli(f"trace={trace}", f"out={tmp_path / 'compared'}")
    assert done.returncode == 2
    assert "ttft_s is missing" in done.stderr
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "compared" / SHIPPED.name / "requests.parquet"), predicted)


def test_a_pool_set_by_hand_is_no_prediction(trace: Path) -> None:
    edit_meta(trace, num_gpu_blocks_override=2100)
    small = run(trace)
    assert small.result.scenario.engine.num_gpu_blocks == 2100
    assert as_json(compare(small))["errors"]["num_gpu_blocks"] is None
    assert small.result.preemptions.sum() > run(SHIPPED).result.preemptions.sum()


def test_two_gpus_of_one_trace_are_two_replicas(trace: Path) -> None:
    edit_meta(trace, num_gpus=2)
    assert set(run(trace).result.replica.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("speculative", "tokens_per_step"),
    [
        ({"method": "eagle3", "num_speculative_tokens": 3, "synthetic_acceptance_length": 2.5, "draft": None}, 2.5),
        ({"method": "draft_model", "num_speculative_tokens": 2, "synthetic_acceptance_rates": [0.5, 0.25]}, 1.75),
        (
            {
                "method": "ngram",
                "num_speculative_tokens": 2,
                "synthetic_acceptance_length": 3,
                "acceptance_rates": [0.6, 0.4],
                "proposed": 0.5,
            },
            1.5,
        ),
    ],
)
def test_a_speculative_trace_is_replayed_with_its_drafts(
    trace: Path, tmp_path: Path, speculative: dict[str, Any], tokens_per_step: float
) -> None:
    artifact = json.loads(find("h100-sxm", "r1-distill-qwen-7b").read_text())
    (tmp_path / "own.json").write_text(json.dumps(artifact | {"speculation": "as above"}))
    edit_meta(trace, speculative=speculative, engine=json.loads((trace / "meta.json").read_text())["engine"] | {"async_scheduling": False})
    result = run(trace, cost_model=tmp_path / "own.json").result
    _, _, first_step, last_step = result.logs[0].segments.T
    steps = int((last_step - first_step + 1).sum()) - len(result.requests)
    assert (result.emitted_tokens.sum() - len(result.requests)) / steps == pytest.approx(tokens_per_step, rel=0.02)
    assert (result.emitted_tokens == result.requests.output_tokens).all()


@pytest.mark.parametrize("prefix_caching", [False, True])
def test_the_engine_remembers_prefixes_if_the_measured_one_did(trace: Path, prefix_caching: bool) -> None:
    edit_meta(trace, prefix_caching=prefix_caching)
    assert run(trace).result.scenario.engine.enable_prefix_caching is prefix_caching


@pytest.mark.parametrize("change", [{"speculative": {"method": "ngram"}}, {"num_gpus": 3, "tensor_parallel_size": 2}])
def test_what_is_not_modelled_is_refused(trace: Path, change: dict[str, Any]) -> None:
    edit_meta(trace, **change)
    with pytest.raises(UserError, match=r"meta\.json: .*(speculative|num_gpus)"):
        Recording.read(trace)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["trace=/there/is/none"], "no such trace"),
        (["format=xml"], "format"),
        (["tracee=x"], "expected key=value with key one of trace"),
        (["predict"], "predict needs one trace"),
        ([f"trace={SHIPPED}", "cost_model=/there/is/none"], "no such file"),
        ([f"trace={SHIPPED}", "router=best"], "router 'best'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert reason in err


def test_without_a_trace_all_shipped_ones_are_replayed() -> None:
    assert SHIPPED in Settings.load([]).traces
    assert Settings.load(["trace=[a,b]"]).traces == [Path("a"), Path("b")]


def test_statistics() -> None:
    assert quantiles(np.array([1.0, 2.0, np.nan, 3.0])) == pytest.approx({"mean": 2.0, "p50": 2.0, "p90": 2.8, "p99": 2.98})
    assert quantiles(np.array([np.nan])) is None
    assert tpot(np.array([1.0, 1.0]), np.array([3.0, 1.0]), np.array([3, 1])).tolist() == pytest.approx([1.0, np.nan], nan_ok=True)
    assert relative(3.0, 2.0) == 0.5
    assert relative(3.0, 0.0) is None
    assert relative(0.0, 0.0) == 0.0


def test_a_benchmarks_result_becomes_a_trace(tmp_path: Path) -> None:
    result = {
        "start_times": [100.5, 100.0, 101.0, 0.0],
        "input_lens": [700, 80, 9, 5],
        "output_lens": [3, 4, 1, 0],
        "ttfts": [0.1, 0.2, 0.1, 0.0],
        "itls": [[0.02, 0.04], [0.03, 0.05], [], []],
    }
    bench = tmp_path / "result.json"
    bench.write_text(json.dumps(result))
    done = cli("import", f"bench={bench}", f"out={tmp_path / 'trace'}", "engine.max_num_seqs=64")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "trace" / "requests.csv.gz", dtype={"request_id": str})
    assert table["request_id"].tolist() == ["1", "0", "2"]
    assert table["arrival_s"].tolist() == [0.0, 0.5, 1.0]
    assert table["e2e_s"].tolist() == pytest.approx([0.28, 0.16, 0.1])
    # Three gaps, of 0, 0.03 and 0.05 s: two of four tokens came together.
    assert table["itl_p50_s"][0] == pytest.approx(0.03)
    compared = compare(run(tmp_path / "trace"))
    assert compared.replay.result.scenario.engine.max_num_seqs == 64
    assert compared.rows["e2e_s"].measured["mean"] == pytest.approx(0.18)
    del result["itls"]
    bench.write_text(json.dumps(result))
    done = cli("import", f"bench={bench}", f"out={tmp_path / 'trace'}")
    assert done.returncode == 2
    assert "itls is missing" in done.stderr
