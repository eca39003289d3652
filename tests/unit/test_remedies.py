"""`conf/remedy/`: every table runs, says what pays, and what cannot matter changes nothing."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from simulator.comparing.compare import Comparison, compare
from simulator.comparing.report import text
from simulator.comparing.wide import what_pays, wide_table
from simulator.compose import CONF

TABLES = sorted((CONF / "remedy").glob("*.yaml"))
SMALL = {
    "batch": ["run.num_requests=64"],
    "open": ["run.duration_s=300", "compare.window_s=[60,240]"],
    "router": ["run.duration_s=60", "compare.window_s=[10,60]"],
}


@cache
def small(path: Path) -> Comparison:
    return compare(path, [*SMALL[path.stem], "compare.num_seeds=3", "compare.workers=1"])


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_table_runs_and_says_what_pays(path: Path) -> None:
    found = small(path)
    rows = wide_table(found)
    assert [row[0] for row in rows[1:]] == [found.options.baseline, *found.options.variants]
    assert {len(row) for row in rows} == {1 + len(found.options.metrics)}
    assert {label for label, _ in what_pays(found)} <= set(rows[0])
    shown = text(found)
    assert "pays most, E2E p99: " in shown
    assert f"python -m simulator conf/remedy/{path.name}" in path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def batches() -> Comparison:
    return small(CONF / "remedy" / "batch.yaml")


def test_no_scheduler_can_help_a_batch_that_has_all_seats(batches: Comparison) -> None:
    for variant in ("shortest first (perfect)", "preempt longest rest (perfect)", "predicted room (perfect)"):
        for metric in batches.options.metrics:
            row = batches.row(variant, metric)
            # The order of the batch is another, and with it what multiprocessors wait for.
            assert row.level.value == pytest.approx(batches.row(batches.options.baseline, metric).level.value, rel=0.01)


def test_batches_of_like_length_fill_their_slots_the_better_the_prediction(batches: Comparison) -> None:
    use = [batches.row(f"alike together ({kind})", "slot_use").level.value for kind in ("by data set", "noisy", "perfect")]
    assert batches.row(batches.options.baseline, "slot_use").level.value < use[0] < use[1] < use[2]
    time = [batches.row(f"alike together ({kind})", "duration_s").ratio for kind in ("noisy", "perfect")]
    assert time[1].value < time[0].value
    assert max(ratio.high for ratio in time) < 1
    assert "alike together (perfect) (-" in dict(what_pays(batches))["running time"]
