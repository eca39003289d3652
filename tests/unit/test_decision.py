"""The decision test: a rate is predicted, runs around it are prepared, and what was measured there is held against it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from profiler.options import Recording
from profiler.options import load as options
from simulator.compose import CONF
from simulator.config import load
from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.request import RequestTable
from simulator.simulate import Scenario, simulate
from simulator.workload import OpenLoop, Workload, generate, read_meta, read_trace
from validation.__main__ import main
from validation.decided import DECISIONS, all_decided
from validation.decision import _command, config_of, edge, judged, read
from validation.page import _decisions

STEP_NS, PER_SEQ_NS = 10_000_000, 100_000.0
ENGINE = {"gpu": "h100-sxm", "model": "r1-distill-qwen-7b", "weights": "bf16", "kv_cache_dtype": "auto", "tensor_parallel_size": 1}
SHIPPED = sorted(path.parent for path in DECISIONS.glob("*/decision.json"))


def cost(factor: float) -> CostModel:
    return CostModel.constant(round(STEP_NS * factor), per_seq_ns=PER_SEQ_NS * factor)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("decision")
    model = folder / "constant.json"
    model.write_text(cost(1.0).artifact.model_dump_json())
    return [
        f"out={folder}", f"cost_model={model}", "workload=math500", "workload.lengths.max_tokens=300",
        "slo={tpot_ms: {p99: 14}}", "decision={measure_s: 60, warmup_s: 5, rates: [0.9, 1.0, 1.1], num_seeds: 2}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def predicted(arguments: list[str]) -> Path:
    assert main(["decision", *arguments]) == 0
    return Path(arguments[0].removeprefix("out="))


def serve(folder: Path, factor: float) -> None:
    """In the GPU's place, an engine whose steps take `factor` times as long serves the prepared runs."""
    for workload in sorted((folder / "workloads").iterdir()):
        requests = read_trace(workload, "measured").requests
        result = simulate(Scenario(Workload(requests, OpenLoop()), EngineConfig(num_gpu_blocks=100_000), cost(factor)))
        table = pd.DataFrame(
            {
                "request_id": requests.request_id,
                "prompt_tokens": requests.prompt_tokens,
                "arrival_s": result.sent_ns / 1e9,
                "output_tokens": requests.output_tokens,
                "ttft_s": (result.first_token_ns - result.sent_ns) / 1e9,
                "e2e_s": (result.finish_ns - result.sent_ns) / 1e9,
            }
        )
        trace = folder / "traces" / workload.name
        trace.mkdir(parents=True, exist_ok=True)
        table.to_csv(trace / "requests.csv.gz", index=False)
        (trace / "meta.json").write_text(json.dumps({"format_version": 1, "name": trace.name, **ENGINE}))


def test_what_is_predicted_is_ready_to_record(predicted: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads((predicted / "decision.json").read_text())
    rates = [run["rate"] for run in document["runs"]]
    assert document["predicted_rate"] == pytest.approx(document["predicted_rate_of_these_requests"], rel=0.1)
    assert rates[0] < document["predicted_rate_of_these_requests"] < rates[-1]
    tokens = [read_trace(predicted / "workloads" / run["name"], "measured").requests for run in document["runs"]]
    assert len(tokens[0]) < len(tokens[1]) < len(tokens[2])
    assert main(["decision", *arguments]) == 0
    said = capsys.readouterr().out
    assert "python -m profiler.record model=r1-distill-qwen-7b gpu=h100-sxm" in said
    assert str(predicted / "workloads" / document["runs"][0]["name"]) in said


@pytest.mark.parametrize("opt", ["none", "awq", "gptq", "fp8", "kv_fp8"])
def test_the_command_asks_the_recorder_for_the_engine_of_the_prediction(opt: str, tmp_path: Path) -> None:
    config = load(
        CONF / "decision.yaml",
        ["~decision", "+command=plan", f"opt={opt}", "cost_model=models/h100-sxm/r1-distill-qwen-32b/awq-kv_auto-tp1.json"],
    )
    command = _command({"runs": [{"name": "rate-1.5"}, {"name": "rate-2"}]}, config, tmp_path)
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:3] == ["python", "-m", "profiler.record"]
    recording = options(words[3:], Recording)
    plain = options(["model=r1-distill-qwen-7b", f"opt={opt}"], Recording)
    assert recording.opt == plain.opt
    assert [part.name for part in recording.workloads] == ["rate-1.5", "rate-2"]
    assert recording.max_model_len == config.engine_config(config.load_cost()).max_model_len


def test_an_engine_as_predicted_gives_the_predicted_rate(predicted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    serve(predicted, 1.0)
    assert main(["decision", "judge", f"out={predicted}"]) == 0
    result = json.loads((predicted / "result.json").read_text())
    assert result["error"] == pytest.approx(0, abs=1e-9)
    assert result["interval"][0] <= result["measured_rate"] <= result["interval"][1]
    assert "error +0.0%" in capsys.readouterr().out


def test_a_slower_engine_keeps_a_lower_rate(predicted: Path) -> None:
    serve(predicted, 1.02)
    assert main(["decision", "judge", f"out={predicted}"]) == 0
    result = json.loads((predicted / "result.json").read_text())
    assert result["error"] > 0.02


def test_a_shipped_decision_is_told_with_what_the_simulator_says_today(predicted: Path, tmp_path: Path) -> None:
    serve(predicted, 1.02)
    shipped = tmp_path / "decisions" / "constant"
    shutil.copytree(predicted, shipped, ignore=shutil.ignore_patterns("workloads"))
    (found,) = all_decided(tmp_path / "decisions")
    assert found.error == pytest.approx(json.loads((predicted / "result.json").read_text())["error"])
    # What was prepared and what a recorder serves are the same requests, to the nanosecond and to how they end.
    assert found.today.rate == pytest.approx(found.predicted.rate, rel=1e-12)
    assert "today" not in found.line()
    assert re.fullmatch(
        r"highest rate within ttft_s.p99 ≤ 1000 ms and tpot_ms.p99 ≤ 14 ms: predicted [\d.]+, measured [\d.]+ requests/s"
        r" \(95 % interval [\d.]+ to [\d.]+\), error \+[\d.]+%",
        found.line(),
    )
    # The cost model is fitted anew and comes nearer: what was said before the recording stays the evidence.
    document = json.loads((shipped / "decision.json").read_text())
    model = tmp_path / "better.json"
    model.write_text(cost(1.02).artifact.model_dump_json())
    document["config"]["cost_model"] = str(model)
    (shipped / "decision.json").write_text(json.dumps(document))
    (again,) = all_decided(tmp_path / "decisions")
    assert again.error == found.error
    assert again.today.rate == pytest.approx(again.measured.rate, rel=1e-6)
    assert "predicted today" in again.line()
    assert "error +0.0%" in again.line()
    assert escape(again.line()) in _decisions([again])


def test_runs_may_have_been_recorded_apart_and_some_not_at_all(predicted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    serve(predicted, 1.0)
    names = [run["name"] for run in json.loads((predicted / "decision.json").read_text())["runs"]]
    shutil.rmtree(predicted / "traces" / names[0])
    assert main(["decision", "judge", f"out={predicted}"]) == 0
    result = json.loads((predicted / "result.json").read_text())
    assert [run["name"] for run in result["runs"]] == names[1:]
    assert result["error"] == pytest.approx(0, abs=1e-9)
    # Without the runs above the limit, both rates are bounds, and are said to be.
    shutil.rmtree(predicted / "traces")
    serve(predicted, 0.95)
    shutil.rmtree(predicted / "traces" / names[2])
    capsys.readouterr()
    assert main(["decision", "judge", f"out={predicted}"]) == 0
    assert "measured at least" in capsys.readouterr().out
    shutil.rmtree(predicted / "traces" / names[0])
    assert main(["decision", "judge", f"out={predicted}"]) == 2


def test_another_engines_run_is_refused(predicted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    serve(predicted, 1.0)
    path = min((predicted / "traces").glob("*/meta.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "weights": "awq"}))
    assert main(["decision", "judge", f"out={predicted}"]) == 2
    assert "weights is awq, but bf16 was predicted" in capsys.readouterr().err
    serve(predicted, 1.0)


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_a_decision_measured_on_a_gpu_is_judged_as_it_is_shipped(folder: Path) -> None:
    document = read(folder)
    assert json.loads(json.dumps(judged(folder, document))) == json.loads((folder / "result.json").read_text())
    config = config_of(document)
    max_model_len = config.engine_config(config.load_cost()).max_model_len
    for run in document["runs"]:
        trace = folder / "traces" / run["name"]
        if trace.is_dir():
            requests = read_trace(trace, "measured").requests
            num_requests = 2 * int(requests.request_id.astype(int).max())
            traffic = generate(config.workload, config.seed, max_model_len=max_model_len, num_requests=num_requests)
            served, asked = lengths(requests), lengths(traffic.requests).loc[requests.request_id]
            # The requests that were served are those that the prediction was made for. How much of those that were under way when the
            # run began was done then, the cost model of that time told.
            assert (served.sum(axis=1) == asked.sum(axis=1)).all()
            window = requests.arrival_ns / 1e9 >= run["window_s"][0]
            assert (served[window] == asked[window]).all(axis=None)
            meta = read_meta(trace)
            assert {name: meta[name] for name in ENGINE} == {
                "gpu": config.gpu.name, "model": config.model.name, "weights": config.opt.weights,
                "kv_cache_dtype": config.opt.kv_cache_dtype, "tensor_parallel_size": config.tensor_parallel_size,
            }  # fmt: skip


def lengths(requests: RequestTable) -> pd.DataFrame:
    """By request."""
    return pd.DataFrame({"prompt": requests.prompt_tokens, "output": requests.output_tokens}, index=requests.request_id)


def test_without_runs_there_is_nothing_to_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decision", "judge", f"out={tmp_path}"]) == 2
    assert "decision.json is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["slo={itl_ms: {p99: 20}}"], "itl"),
        (["workload=barrier"], "open workload"),
        (["decision.measure_s=long"], "measure_s"),
        (["modle=x"], "modle"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decision", f"out={tmp_path}", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err


def test_the_edge_lies_where_the_limit_is_passed() -> None:
    assert edge([1.0, 2.0, 3.0], [0.5, 1.0, 2.0]).rate == pytest.approx(2.0)
    assert edge([1.0, 2.0], [np.exp(-1), np.exp(3)]).rate == pytest.approx(1.25)
    assert edge([1.0, 2.0, 3.0, 4.0], [0.5, 1.1, 0.8, 2.0]).rate == pytest.approx(3.0 + 0.0641 / (0.0641 + np.log(2)), abs=0.01)
    assert edge([1.0, 2.0], [0.5, 0.9]).bound == "at least "
    assert edge([1.0, 2.0], [1.5, 1.9]).bound == "at most "
