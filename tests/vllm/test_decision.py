"""The decision test on a real engine: predicted, recorded by a process for each run, put together, shipped and judged anew."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from profiler.pack import main as pack
from simulator.cost import CostModel
from simulator.workload import read_trace
from tests.support.profiling import command
from validation.__main__ import main
from validation.decided import all_decided

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]


def test_runs_of_two_processes_are_one_decision(tmp_path: Path) -> None:
    cost_model = tmp_path / "constant.json"
    cost_model.write_text(CostModel.constant(20_000_000, per_seq_ns=5e6).artifact.model_dump_json())
    predicted = tmp_path / "predicted"
    assert not main([
        "decision", "model=tiny", "gpu=cpu", "opt.weights=float32", f"cost_model={cost_model}", f"out={predicted}",
        "engine={max_model_len: 1024, max_num_seqs: 32, max_num_batched_tokens: 1024}", "workload=math500",
        "workload.lengths.max_tokens=48", "slo={ttft_s: {p99: 5}, tpot_ms: {p99: 60}}",
        "decision={measure_s: 20, warmup_s: 1, rates: [0.9, 1.1], num_seeds: 1}",
    ])  # fmt: skip
    shipped = tmp_path / "decisions" / "tiny-float32"
    names = [run["name"] for run in json.loads((predicted / "decision.json").read_text())["runs"]]
    for name in names:
        run = f"workloads=[{{name: {name}, duration_s: 86400, workload: {{kind: replay, path: {predicted / 'workloads' / name}}}}}]"
        recorded = tmp_path / f"by-{name}"
        done = subprocess.run(command(run, f"out={recorded}", module="profiler.record"), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert pack([str(recorded / name)]) == 0
        shutil.copytree(recorded / name, shipped / "traces" / name, ignore=shutil.ignore_patterns("steps.csv.gz"))
        # What was recorded is what was prepared, at the times that were meant.
        served, prepared = (read_trace(folder / name, "measured").requests for folder in (shipped / "traces", predicted / "workloads"))
        assert (served.prompt_tokens == prepared.prompt_tokens).all()
        assert (served.output_tokens == prepared.output_tokens).all()
        assert abs(served.arrival_ns - prepared.arrival_ns).max() < 2e9
    shutil.copy(predicted / "decision.json", shipped)
    assert main(["decision", "judge", f"out={shipped}"]) == 0
    result = json.loads((shipped / "result.json").read_text())
    assert [run["name"] for run in result["runs"]] == names
    for run in result["runs"]:
        table = pd.read_csv(shipped / "traces" / run["name"] / "requests.csv.gz")
        assert 0 < run["measured_s"]["ttft_s.p99"] <= table["ttft_s"].max()
    (found,) = all_decided(tmp_path / "decisions")
    assert found.measured.rate == result["measured_rate"]
    # Arrivals differ by milliseconds, and so does what is predicted of them.
    assert found.today.rate == pytest.approx(found.predicted.rate, rel=0.1)
