"""The shipped configurations of clients and deployments, run as their comments say."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from simulator.__main__ import main
from simulator.artifacts.models import engine_start_s
from simulator.errors import UserError

ROOT = Path(__file__).parents[2]


def run(capsys: pytest.CaptureFixture[str], out: Path, name: str, *overrides: str) -> tuple[str, dict[str, object], Path]:
    """(stdout, summary.json, the folder of the results)."""
    code = main([str(ROOT / "conf" / f"{name}.yaml"), *overrides, f"out={out}"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    [folder] = out.iterdir()
    return captured.out, json.loads((folder / "summary.json").read_text()), folder


def test_a_start_that_was_not_measured_has_to_be_given(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="engine_start_s was not measured for mine"):
        engine_start_s(tmp_path / "mine.json")


def mistake(capsys: pytest.CaptureFixture[str], name: str, *overrides: str) -> str:
    assert main([str(ROOT / "conf" / f"{name}.yaml"), *overrides]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return line


def test_a_retry_storm(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    storm = ("command=simulate", "cluster.num_replicas=1", "run.duration_s=120", "clients.timeout_s=15")
    text, figures, folder = run(capsys, tmp_path, "impatient_clients", *storm)
    assert "clients    timeout 15 s, up to 3 attempts, patience 60 s on average for TTFT" in text
    assert float(str(figures["attempts_per_request"])) > 1.5
    requests = pq.read_table(folder / "requests.parquet")
    assert requests.num_rows >= int(str(figures["attempts"]))
    assert {"finished", "aborted"} <= set(requests["outcome"].to_pylist())


def test_how_many_gpus_under_retries(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    few = ("workload.arrivals.rate=3", "plan.num_seeds=2", "plan.max_gpus=3", "plan.hours=0.01", "plan.workers=1")
    text, figures, _ = run(capsys, tmp_path, "impatient_clients", *few)
    assert text.startswith("You need 1 GPU")
    assert "attempts a request" in text
    [candidate] = [one for one in figures["candidates"] if one["gpus"] == 1]
    assert all(0 <= trial["given_up_share"] < 0.02 for trial in candidate["clients"])


def test_failures_beside_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    quick = ("workload.arrivals.rate=4", "run.duration_s=200", "outages.events=[{kind: failure, at_s: 100, node: 1, down_s: 30}]")
    text, figures, _ = run(capsys, tmp_path, "failures", *quick)
    assert "Beside 'no outages'" in text.splitlines()[1]
    compared = figures["compared"]
    assert compared["this service"]["lost_share"] > 0 == compared["no outages"]["lost_share"]
    assert figures["serving_share"] < 1


def test_a_day_followed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text, figures, _ = run(capsys, tmp_path, "autoscaling", "run.duration_s=1800", "autoscaling.target=8")
    assert "GPU-hours" in text.splitlines()[0]
    # Measured with the profile: an engine of the 32B starts in about two minutes.
    assert 100 < float(str(figures["engine_start_s"])) < 150
    assert len(figures["compared"]) >= 2


def test_prompts_and_answers_apart(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text, figures, _ = run(capsys, tmp_path, "disaggregation", "command=simulate", "cluster.num_replicas=3", "run.duration_s=30")
    assert set(figures["groups"]) == {"decode", "prefill"}
    assert figures["groups"]["prefill"]["gpu_utilization"] > 0.1
    assert "prefill" in text


def test_given_replicas_spare_others(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    quick = ("workload.arrivals.rate=5", "plan.num_seeds=2", "plan.hours=0.01", "plan.workers=1", "plan.max_gpus=4")
    one = "cluster.pools=[{name: fp8 KV, kv_cache_dtype: fp8, num_replicas: 1}]"
    text, figures, _ = run(capsys, tmp_path / "beside", "mixed_pool", *quick, one)
    assert "beside 1 of fp8 KV" in text
    _, alone, _ = run(capsys, tmp_path / "alone", "mixed_pool", *quick, "cluster.pools=[]")
    assert 1 <= int(str(figures["gpus"])) < int(str(alone["gpus"])) <= int(str(figures["gpus"])) + 2


def test_mistakes_are_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "measured of h100-sxm" in mistake(capsys, "mixed_pool", "cluster.pools=[{weights: int3}]")
    assert "measured of h100-sxm" in mistake(capsys, "mixed_pool", "tensor_parallel_size=2")
    assert "command: simulate" in mistake(capsys, "failures", "command=plan")
    assert "max_replicas 1 is less than min_replicas 2" in mistake(
        capsys, "autoscaling", "autoscaling.max_replicas=1", "autoscaling.min_replicas=2"
    )
    assert "unknown kind 'storm'" in mistake(capsys, "failures", "outages.events=[{kind: storm}]")
    assert "disaggregation does not go with" in mistake(capsys, "failures", "disaggregation={bandwidth_gb_per_s: 50}")
