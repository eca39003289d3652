"""Where an error comes from is told apart: a service that is slower than the cost model says, but schedules as the simulator does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.request import RequestTable
from simulator.simulate import Result, Scenario, simulate
from simulator.step.steplog import ROW
from simulator.workload import OpenLoop, Workload
from validation.__main__ import TRACES, main
from validation.batches import batch_errors
from validation.compare import Comparison, compare
from validation.judged import Judged, overview
from validation.limits import judge
from validation.page import page
from validation.repeat import repeatability
from validation.replay import Recording, Replay, replay
from validation.split import Split, split

ENGINE = EngineConfig(enable_prefix_caching=False, max_model_len=512, max_num_batched_tokens=512, max_num_seqs=64, num_gpu_blocks=150)
STEP_NS, SLOWER = 10_000_000, 1.1


def cost(factor: float) -> CostModel:
    return CostModel.constant(round(STEP_NS * factor), per_seq_ns=1e4 * factor, num_gpu_blocks=ENGINE.num_gpu_blocks)


def served() -> Result:
    """A service over capacity, without a pause: requests wait and are preempted."""
    random = np.random.default_rng(1)
    n = 60
    requests = RequestTable.build(
        np.sort(random.integers(0, 1_000_000_000, n)), random.integers(20, 100, n), random.integers(50, 300, n)
    )  # fmt: skip
    return simulate(Scenario(Workload(requests, OpenLoop()), ENGINE, cost(SLOWER), stride=1))


def write_trace(folder: Path, result: Result, name: str, factor: float = 1.0) -> Path:
    """The result as a measured trace; times multiplied by `factor`."""
    folder.mkdir()
    seconds = {"ttft_s": result.first_token_ns - result.sent_ns, "e2e_s": result.finish_ns - result.sent_ns}
    requests = pd.DataFrame({column: values * factor / 1e9 for column, values in seconds.items()})
    requests = requests.assign(
        request_id=result.requests.request_id,
        arrival_s=result.requests.arrival_ns / 1e9,
        prompt_tokens=result.requests.prompt_tokens,
        output_tokens=result.requests.output_tokens,
        preemptions=result.preemptions,
    )
    requests.to_csv(folder / "requests.csv.gz", index=False)
    log = pd.DataFrame(result.logs[0].rows, columns=list(ROW))
    step = log["first_step"]
    end_s = log["first_end_ns"].to_numpy() / 1e9
    steps = pd.DataFrame(
        {
            "schedule_s": np.concatenate([np.full(2, result.requests.arrival_ns[0] / 1e9), end_s[:-2]]),
            "update_s": end_s,
            "prefill_seqs": log["prefill_seqs"],
            "prefill_tokens": log["prefill_tokens"],
            "prefill_context_tokens": log["prefill_tokens"],
            "decode_seqs": log["decode_seqs"],
            "decode_context_tokens": log["intercept_sum"] + log["decode_seqs"] * step,
            "kv_usage": 0.5,
            "running": log["decode_seqs"],
            "waiting": 0,
            "preempted": np.concatenate([[result.preemptions.sum()], np.zeros(len(log) - 1)]).astype(int),
        }
    )
    steps.to_csv(folder / "steps.csv.gz", index=False)
    options = {
        name: getattr(ENGINE, name) for name in ("max_model_len", "max_num_batched_tokens", "max_num_seqs", "block_size", "num_gpu_blocks")
    }
    engine = {"name": "vllm", "version": "0.26.0", **options, "async_scheduling": True, "enable_chunked_prefill": True}
    meta = {
        "format_version": 1, "name": name, "gpu": "none", "num_gpus": 1, "model": "constant", "weights": "none", "kv_cache_dtype": "auto",
        "prefix_caching": False, "speculative": None, "tensor_parallel_size": 1, "engine": engine,
    }  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def compared(folder: Path, cost_model: Path) -> Comparison:
    return compare(replay(Recording.read(folder), cost_model=cost_model, router=None, seed=0))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "constant.json"
    path.write_text(cost(1.0).artifact.model_dump_json())
    return path


@pytest.fixture(scope="module")
def slower(tmp_path_factory: pytest.TempPathFactory, model: Path) -> tuple[Comparison, Split]:
    comparison = compared(write_trace(tmp_path_factory.mktemp("traces") / "slower", served(), "slower"), model)
    return comparison, split(comparison)


def test_a_cost_model_that_is_too_fast_is_found_to_be(slower: tuple[Comparison, Split]) -> None:
    errors = slower[1].cost_model
    assert errors is not None
    assert errors.token_time == pytest.approx(1 / SLOWER - 1, abs=0.002)
    assert errors.all_steps.signed_sum == pytest.approx(1 / SLOWER - 1, abs=0.002)
    assert errors.all_steps.median_abs == pytest.approx(1 - 1 / SLOWER, abs=0.002)
    assert errors.with_prefill is not None
    assert errors.with_prefill.windows < errors.all_steps.windows
    assert errors.single_steps is not None
    assert errors.single_steps.windows > errors.all_steps.windows
    assert errors.single_steps.median_abs == pytest.approx(1 - 1 / SLOWER, abs=0.002)


def test_a_scheduler_without_error_has_none_on_measured_durations(slower: tuple[Comparison, Split]) -> None:
    comparison, found = slower
    assert found.scheduler is not None
    assert found.scheduler.same_composition > 0.99
    for name in ("e2e_s", "tpot_s", "ttft_s"):
        for error in found.scheduler.errors[name].values():
            assert error == pytest.approx(0, abs=0.002), name
    there = found.scheduler.preemptions
    assert (there.simulated, there.only_measured, there.only_simulated) == (there.measured, 0, 0)
    assert there.both is not None
    assert there.both > 5
    # With the cost model's own times it is the cost model's error that shows, and in the queue more than that.
    assert (comparison.rows["tpot_s"].errors["mean"] or 0.0) < 1 / SLOWER - 1


def test_on_a_real_trace_the_scheduler_alone_is_exact_to_a_few_thousandths() -> None:
    trace = TRACES / "h100-r1-distill-qwen-7b-bf16-rate5"
    comparison = compare(replay(Recording.read(trace), cost_model=None, router=None, seed=0))
    found = split(comparison)
    assert found.scheduler is not None
    assert found.cost_model is not None
    for name in ("e2e_s", "tpot_s"):
        assert all(abs(error or 0.0) < 0.003 for error in found.scheduler.errors[name].values()), name
    assert found.scheduler.same_composition > 0.85
    # The same without the recorder's own columns: what they say is found from the requests.
    assert comparison.steps is not None
    plain = comparison.steps.drop(columns=["decode_context_max_tokens", "prefill_attention_tokens", "verify_tokens"])
    scenario = comparison.replay.result.scenario
    rebuilt = batch_errors(plain, comparison.replay.result.requests, comparison.measured, scenario.engine, scenario.cost)
    assert rebuilt.token_time == pytest.approx(found.cost_model.token_time, abs=1e-4)


def test_without_steps_the_error_is_not_split(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, twin = (write_trace(tmp_path / name, served(), name) for name in ("plain", "twin"))
    (folder / "steps.csv.gz").unlink()
    comparison = compared(folder, model)
    found = split(comparison)
    assert found.cost_model is found.scheduler is None
    assert "no steps.csv.gz" in found.why_not
    assert comparison.rows["e2e_s"] == compared(twin, model).rows["e2e_s"]
    # Alone, and beside one that has steps: what can be told is told, and what cannot is said.
    assert main([f"trace={folder}", f"cost_model={model}", f"out={tmp_path}"]) == 0
    assert "the error cannot be split by source" in capsys.readouterr().out
    assert "waiting requests (not recorded: simulated only)" in (tmp_path / "report.html").read_text()
    assert main([f"trace=[{folder},{twin}]", f"cost_model={model}", f"out={tmp_path}"]) == 0
    assert (tmp_path / "report.html").read_text().count("waiting requests (not recorded: simulated only)") == 1


def test_without_any_record_of_preemptions_the_simulation_tells_the_load(tmp_path: Path, model: Path) -> None:
    folder = write_trace(tmp_path / "plain", served(), "plain")
    (folder / "steps.csv.gz").unlink()
    pd.read_csv(folder / "requests.csv.gz").drop(columns="preemptions").to_csv(folder / "requests.csv.gz", index=False)
    comparison = compared(folder, model)
    assert comparison.preemptions.measured is None
    assert comparison.preemptions.simulated > 0
    verdict = judge(comparison, None)
    assert verdict.over_capacity
    assert verdict.checks["preemptions"] == []


def test_a_workload_measured_twice_says_how_far_the_machine_is_from_itself(tmp_path: Path, model: Path) -> None:
    result = served()
    once, again = (compared(write_trace(tmp_path / name, result, name, factor), model) for name, factor in (("once", 1.0), ("again", 1.02)))
    other = compared(TRACES / "h100-r1-distill-qwen-7b-bf16-gamma", Path("models/h100-sxm/r1-distill-qwen-7b/bf16-kv_auto-tp1.json"))
    first, second, third = repeatability([once, again, other])
    assert first == second
    assert third is None
    assert first is not None
    assert first["e2e_s"]["mean"] == pytest.approx(0.02, abs=5e-4)


def test_one_table_and_one_page_of_all_traces(slower: tuple[Comparison, Split]) -> None:
    judged = [Judged(*slower, None)]
    text = overview(judged, ["lost: no cost model"])
    error = slower[0].rows["e2e_s"].errors["mean"]
    assert error is not None
    assert text.startswith(f"E2E within 2% in the mean in 0 of 1 traces, at most {error:+.1%} off (slower); |E2E, TPOT| ")
    assert "slower" in text
    assert "not replayed: lost: no cost model" in text
    html = page(judged, ["lost: no cost model"])
    assert html.count('class="plotly-graph-div"') == 1
    assert 'src="http' not in html
    assert "1 trace that no fit has seen" in html


def test_the_interval_of_an_error_holds_it_and_is_wide_where_requests_are_few(slower: tuple[Comparison, Split]) -> None:
    row = slower[0].rows["e2e_s"]
    ends, error = row.intervals["mean"], row.errors["mean"]
    assert ends is not None
    assert error is not None
    assert ends[0] <= error <= ends[1]
    assert isinstance(slower[0].replay, Replay)
