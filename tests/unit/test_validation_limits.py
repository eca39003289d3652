"""Traces against the limits, and against their own repetitions."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from validation.__main__ import TRACES, main
from validation.compare import Comparison, Preempted, compare
from validation.limits import LIMITS, Verdict, judge, limits_cells
from validation.repeat import repeatability
from validation.replay import Recording, Replay, replay

SHIPPED = TRACES / "h100-r1-distill-qwen-7b-bf16-gamma"
TIMES = ("ttft_s", "e2e_s", "itl_p50_s", "itl_p99_s", "itl_max_s")


@pytest.fixture(scope="module")
def simulated() -> Replay:
    return replay(Recording.read(SHIPPED), cost_model=None, router=None, seed=0)


def recorded(folder: Path, simulated: Replay, *, stretch: float = 1.0, meta: dict[str, Any] | None = None, rows: int | None = None) -> Path:
    """What the simulator says, with all times stretched, as a trace."""
    folder.mkdir(parents=True)
    table = pd.read_csv(SHIPPED / "requests.csv.gz", dtype={"request_id": str}).sort_values("arrival_s").drop(columns=list(TIMES))
    table = table.merge(pd.DataFrame(simulated.columns()), on="request_id")
    table[list(TIMES)] *= stretch
    table.head(rows or len(table)).to_csv(folder / "requests.csv.gz", index=False)
    (folder / "meta.json").write_text(json.dumps(json.loads((SHIPPED / "meta.json").read_text()) | {"name": folder.name} | (meta or {})))
    return folder


def compared(folder: Path) -> Comparison:
    return compare(replay(Recording.read(folder), cost_model=None, router=None, seed=0))


def missed(verdict: Verdict) -> set[str]:
    return {label for label, checks in verdict.checks.items() if not all(check.met for check in checks)}


@pytest.mark.parametrize(
    ("stretch", "expected"),
    [
        (1.005, set()),
        (1.015, {"|E2E, TPOT|"}),
        (1.03, {"E2E", "TPOT", "|E2E, TPOT|"}),
        (1.08, {"E2E", "TPOT", "|E2E, TPOT|", "TTFT mean, p50"}),
        (1.2, {"E2E", "TPOT", "|E2E, TPOT|", "TTFT mean, p50", "TTFT p99"}),
    ],
)
def test_up_to_capacity_every_limit_is_where_it_belongs(tmp_path: Path, simulated: Replay, stretch: float, expected: set[str]) -> None:
    verdict = judge(compared(recorded(tmp_path / "t", simulated, stretch=stretch)), None)
    assert not verdict.over_capacity
    assert missed(verdict) == expected
    assert verdict.met == (not expected)


@pytest.mark.parametrize(
    ("stretch", "measured", "expected"),
    [(1.025, 100, set()), (1.035, 100, {"E2E", "TPOT"}), (1.0, 116, {"preemptions"}), (1.0, 84, {"preemptions"})],
)
def test_over_capacity_other_limits_hold(tmp_path: Path, simulated: Replay, stretch: float, measured: int, expected: set[str]) -> None:
    comparison = compared(recorded(tmp_path / "t", simulated, stretch=stretch))
    over = replace(comparison, preemptions=Preempted(98, measured, None, None, None))
    verdict = judge(over, None)
    assert verdict.over_capacity
    assert missed(verdict) == expected
    # TTFT and the average have no limit there; the average is told all the same.
    assert verdict.checks["TTFT mean, p50"] == verdict.checks["|E2E, TPOT|"] == []
    assert f"{over.average_abs:.2%}" in limits_cells("t", verdict)


def test_a_limit_is_never_narrower_than_what_the_gpu_repeats(tmp_path: Path, simulated: Replay) -> None:
    comparison = compared(recorded(tmp_path / "t", simulated, stretch=1.03))
    again = {"e2e_s": {"mean": 0.02, "p50": 0.02, "p90": 0.02, "p99": 0.02}}
    verdict = judge(comparison, again)
    assert missed(verdict) == {"TPOT", "|E2E, TPOT|"}
    assert [check.limit for check in verdict.checks["E2E"]] == pytest.approx([0.03] * 4)
    assert "of 3.00%" in limits_cells("t", verdict)[2]


def test_every_trace_is_judged_in_text_json_and_page(tmp_path: Path, simulated: Replay, capsys: pytest.CaptureFixture[str]) -> None:
    near, far = (recorded(tmp_path / name, simulated, stretch=stretch) for name, stretch in (("near", 1.002), ("far", 1.1)))
    assert main([f"trace=[{near},{far}]", f"out={tmp_path / 'out'}"]) == 0
    text = capsys.readouterr().out
    # They are repeats of each other, 10 % apart: what the GPU does not repeat, nobody has to meet.
    assert "against the limits: 1 of 2 traces meet them all" in text
    assert "of 13." in text
    html = (tmp_path / "out" / "report.html").read_text()
    assert html.count('class="missed"') == 2
    assert main([f"trace={far}", "format=json", f"out={tmp_path / 'out'}"]) == 0
    limits = json.loads(capsys.readouterr().out)["limits"]
    assert limits["met"] is False
    assert {check["quantity"] for check in limits["checks"]} == {limit.quantity for limit in LIMITS} - {"preemptions"}


def test_predictions_of_traces_that_are_called_alike_lie_apart(tmp_path: Path, simulated: Replay) -> None:
    one, other = (recorded(tmp_path / name, simulated, meta={"name": "same"}, rows=rows) for name, rows in (("a", 30), ("b", 40)))
    assert main([f"trace=[{one},{other}]", f"out={tmp_path / 'out'}"]) == 0
    assert [len(pd.read_parquet(tmp_path / "out" / f"same-{name}" / "requests.parquet")) for name in "ab"] == [30, 40]


def test_recordings_of_one_workload_on_different_machines_are_repetitions(tmp_path: Path, simulated: Replay) -> None:
    """Whatever they are called, however many blocks vLLM found room for, and though a client stalled in one of them."""
    engine = json.loads((SHIPPED / "meta.json").read_text())["engine"]
    once = compared(recorded(tmp_path / "machine-1", simulated))
    moved = recorded(
        tmp_path / "machine-2", simulated, stretch=1.04, meta={"engine": engine | {"num_gpu_blocks": engine["num_gpu_blocks"] + 9}}
    )
    late = pd.read_csv(moved / "requests.csv.gz", dtype={"request_id": str})
    late.loc[100:110, "arrival_s"] = np.maximum(late.loc[100:110, "arrival_s"], late.loc[110, "arrival_s"])
    late.to_csv(moved / "requests.csv.gz", index=False)
    first, second = repeatability([once, compared(moved)])
    assert first == second
    assert first is not None
    assert first["tpot_s"]["p99"] == pytest.approx(1 - 1 / 1.04, abs=1e-6)


def test_a_trace_that_was_cut_repeats_the_beginning_of_the_other(tmp_path: Path, simulated: Replay) -> None:
    whole = compared(recorded(tmp_path / "whole", simulated))
    cut = recorded(tmp_path / "cut", simulated, stretch=1.04, rows=300, meta={"cut_s": 500.0})
    rows = pd.read_csv(cut / "requests.csv.gz", dtype={"request_id": str})
    rows.loc[280:, list(TIMES)] = np.nan
    rows.to_csv(cut / "requests.csv.gz", index=False)
    first, _ = repeatability([whole, compared(cut)])
    assert first is not None
    # Over what ended in both: else the longer trace's other requests would stand against nothing.
    assert all(value == pytest.approx(1 - 1 / 1.04, abs=1e-6) for value in first["e2e_s"].values())


@pytest.mark.parametrize(
    "meta", [{"kv_cache_dtype": "fp8"}, {"client": "HTTP client of vLLM's OpenAI server; dummy weights"}, {"num_gpu_blocks_override": 9000}]
)
def test_another_engine_is_no_repetition(tmp_path: Path, simulated: Replay, meta: dict[str, Any]) -> None:
    once, other = compared(recorded(tmp_path / "once", simulated)), compared(recorded(tmp_path / "other", simulated))
    recording = other.replay.recording
    changed = replace(recording, meta=recording.meta.model_copy(update=meta))
    assert repeatability([once, other])[0] is not None
    assert repeatability([once, replace(other, replay=replace(other.replay, recording=changed))]) == [None, None]


def test_another_load_is_no_repetition(tmp_path: Path, simulated: Replay) -> None:
    """The same lengths at another rate."""
    once, denser = compared(recorded(tmp_path / "once", simulated)), recorded(tmp_path / "denser", simulated)
    rows = pd.read_csv(denser / "requests.csv.gz", dtype={"request_id": str})
    rows["arrival_s"] *= 0.98
    rows.to_csv(denser / "requests.csv.gz", index=False)
    assert repeatability([once, compared(denser)]) == [None, None]
    shutil.rmtree(denser)
