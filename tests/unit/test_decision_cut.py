"""A recorded run whose time was over before its last answers ended is judged as of then, and so is what is predicted of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.errors import UserError
from simulator.simulate import Scenario
from simulator.workload import OpenLoop, Workload, read_trace
from validation.__main__ import main
from validation.decided import decided
from validation.decision import Edge, error, judged, read
from validation.protocol import measured
from validation.replay import until_cut

FACTOR = 1.02
LATER_S = 1.0
"""From the end of the window to the cut: less than an answer takes."""


def cost(factor: float) -> CostModel:
    return CostModel.constant(round(10_000_000 * factor), per_seq_ns=100_000.0 * factor)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decision whose runs an engine served that is slower than predicted, each cut soon after its window."""
    folder = tmp_path_factory.mktemp("decision")
    model = folder / "constant.json"
    model.write_text(cost(1.0).artifact.model_dump_json())
    assert main([
        "decision", f"out={folder}", f"cost_model={model}", "workload=math500", "workload.lengths.max_tokens=300",
        "slo={tpot_ms: {p99: 14}}", "decision={measure_s: 60, warmup_s: 5, rates: [0.9, 1.1], num_seeds: 1}",
    ]) == 0  # fmt: skip
    for run in read(folder)["runs"]:
        serve(folder, run["name"], run["window_s"][1] + LATER_S)
    # The cost model is fitted anew, and is right.
    model.write_text(cost(FACTOR).artifact.model_dump_json())
    return folder


def serve(folder: Path, name: str, cut_s: float) -> None:
    requests = read_trace(folder / "workloads" / name, "measured").requests
    whole, cut = until_cut(Scenario(Workload(requests, OpenLoop()), EngineConfig(num_gpu_blocks=100_000), cost(FACTOR)), cut_s)
    sent_s, first_s, end_s = (column / 1e9 for column in (whole.sent_ns, whole.first_token_ns, whole.finish_ns))
    table = pd.DataFrame(
        {
            "request_id": requests.request_id,
            "arrival_s": sent_s,
            "prompt_tokens": requests.prompt_tokens,
            "output_tokens": requests.output_tokens,
            "ttft_s": np.where(first_s > cut_s, np.nan, first_s - sent_s),
            "e2e_s": np.where(end_s > cut_s, np.nan, end_s - sent_s),
            "received_tokens": cut.emitted_tokens,
        }
    )
    trace = folder / "traces" / name
    trace.mkdir(parents=True)
    table[sent_s < cut_s].to_csv(trace / "requests.csv.gz", index=False)
    (trace / "meta.json").write_text(json.dumps({"format_version": 1, "name": name, "cut_s": cut_s}))


def spoilt(recorded: Path, to: Path, cut_s: float | None, **columns: object) -> tuple[Path, tuple[float, float]]:
    """The first run, with another cut or other columns; and its window."""
    run = read(recorded)["runs"][0]
    trace = shutil.copytree(recorded / "traces" / run["name"], to / "trace")
    meta = json.loads((trace / "meta.json").read_text())
    (trace / "meta.json").write_text(json.dumps(meta | {"cut_s": cut_s or meta["cut_s"]}))
    pd.read_csv(trace / "requests.csv.gz").assign(**columns).to_csv(trace / "requests.csv.gz", index=False)
    return trace, tuple(run["window_s"])


def test_a_right_cost_model_predicts_just_what_was_measured_until_the_cut(recorded: Path) -> None:
    found = decided(recorded)
    runs = judged(recorded, read(recorded))["runs"]
    assert all(0 < run["unfinished"] < 0.05 * 60 * run["rate"] for run in runs)
    assert found.today.rate == pytest.approx(found.measured.rate, rel=1e-6)
    assert found.error > 0.02, "what was predicted before stays"
    assert f"{sum(run['unfinished'] for run in runs)} requests had not ended when the run was cut" in found.line()


def test_of_an_answer_that_had_not_ended_it_is_the_time_per_token_until_then(recorded: Path) -> None:
    run = read(recorded)["runs"][0]
    latencies = measured(recorded / "traces" / run["name"], tuple(run["window_s"]))
    table = pd.read_csv(recorded / "traces" / run["name"] / "requests.csv.gz", dtype={"request_id": str})
    table = table[table["arrival_s"].between(*run["window_s"], inclusive="left")].reset_index()
    unfinished = table[table["e2e_s"].isna()]
    assert latencies.cut is not None
    assert latencies.cut.request_ids == set(unfinished["request_id"])
    came_s = run["window_s"][1] + LATER_S - unfinished["arrival_s"] - unfinished["ttft_s"]
    assert latencies.by_metric["tpot"][unfinished.index] == pytest.approx((came_s / (unfinished["received_tokens"] - 1)).to_numpy())
    ended = table.dropna(subset="e2e_s")
    whole = (ended["e2e_s"] - ended["ttft_s"]) / (ended["output_tokens"] - 1)
    assert latencies.by_metric["tpot"][ended.index] == pytest.approx(whole.to_numpy())


def test_the_judge_says_what_was_cut(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decision", "judge", f"out={recorded}"]) == 0
    assert capsys.readouterr().out.count("had not ended when the run was cut: their TPOT until then") == 2


def test_an_e2e_limit_is_not_judged_by_answers_without_an_end(recorded: Path) -> None:
    document = read(recorded)
    document["config"]["slo"]["e2e_s"] = {"p99": 10.0}
    with pytest.raises(UserError, match="E2E latency cannot be judged"):
        judged(recorded, document)


def test_a_run_that_was_cut_too_early_is_refused(recorded: Path, tmp_path: Path) -> None:
    trace, window_s = spoilt(recorded, tmp_path / "window", cut_s=60.0)
    with pytest.raises(UserError, match="cut after 60 s: it cannot be judged"):
        measured(trace, window_s)
    for name, columns in {"ends": {"e2e_s": np.nan}, "first": {"ttft_s": np.nan}}.items():
        trace, window_s = spoilt(recorded, tmp_path / name, None, **columns)
        with pytest.raises(UserError, match="it cannot be judged"):
            measured(trace, window_s)


def test_without_the_tokens_that_came_nothing_is_judged(recorded: Path, tmp_path: Path) -> None:
    trace, window_s = spoilt(recorded, tmp_path, None)
    pd.read_csv(trace / "requests.csv.gz").drop(columns="received_tokens").to_csv(trace / "requests.csv.gz", index=False)
    with pytest.raises(UserError, match="do not tell what had come"):
        measured(trace, window_s)


@pytest.mark.parametrize(
    ("predicted", "found", "said"),
    [
        (Edge(1.1), Edge(1.0), "error +10.0%"),
        (Edge(1.1), Edge(1.0, "at most "), "error at least +10.0%"),
        (Edge(1.1, "at least "), Edge(1.0, "at most "), "error at least +10.0%"),
        (Edge(0.9, "at most "), Edge(1.0), "error at most -10.0%"),
        (Edge(0.9), Edge(1.0, "at least "), "error at most -10.0%"),
        (Edge(1.0, "at most "), Edge(1.0, "at most "), "no error can be told"),
    ],
)
def test_of_bounds_the_error_is_a_bound(predicted: Edge, found: Edge, said: str) -> None:
    assert said in error(predicted, found)
