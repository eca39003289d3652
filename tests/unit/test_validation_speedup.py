"""What drafts brought: a speculative trace is held against the same requests served without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from validation.__main__ import TRACES, main
from validation.judged import Judged, overview
from validation.page import page
from validation.replay import Recording
from validation.speedup import find_twin

DRAFTED, PLAIN, OTHER = (TRACES / f"h100-r1-distill-qwen-7b-bf16-{name}" for name in ("gamma-eagle3", "gamma", "rate5"))


@pytest.fixture
def drafted(tmp_path: Path) -> Path:
    """A copy of the shipped speculative trace."""
    shutil.copytree(DRAFTED, tmp_path / "drafted")
    return tmp_path / "drafted"


def edit_requests(folder: Path, **columns: Any) -> None:
    path = folder / "requests.csv.gz"
    pd.read_csv(path, dtype={"request_id": str}).assign(**columns).to_csv(path, index=False)


def edit_meta(folder: Path, **changes: object) -> None:
    path = folder / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def latencies(folder: Path) -> pd.DataFrame:
    frame = pd.read_csv(folder / "requests.csv.gz", dtype={"request_id": str}).set_index("request_id")
    return frame.assign(tpot_s=(frame.e2e_s - frame.ttft_s) / (frame.output_tokens - 1))[frame.output_tokens > 1]


def test_the_speed_up_of_the_shipped_trace_is_met(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"trace={DRAFTED}", "format=json", f"out={tmp_path}"]) == 0
    found = json.loads(capsys.readouterr().out)["speed_up"]
    with_, without = latencies(DRAFTED), latencies(PLAIN)
    without = without.loc[with_.index]
    assert (found["twin"], found["requests"]) == (PLAIN.name, len(with_))
    for name in ("e2e_s", "tpot_s"):
        for statistic, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
            assert found[name][statistic]["measured"] == pytest.approx(without[name].quantile(share) / with_[name].quantile(share))
        mean = found[name]["mean"]
        assert mean["measured"] == pytest.approx(without[name].mean() / with_[name].mean())
        assert mean["error"] == pytest.approx(mean["simulated"] / mean["measured"] - 1)
        assert mean["interval"][0] <= mean["error"] <= mean["interval"][1]
        # Issue 5: the simulated speed-up of a recorded speculative trace within 5 %.
        assert all(abs(gain["error"]) < 0.05 for gain in found[name].values())
    # Predictions of both were written before any latency was read.
    assert {path.parent.name for path in tmp_path.glob("*/requests.parquet")} == {DRAFTED.name, PLAIN.name}


def test_a_speed_up_is_told_in_the_table_and_on_the_page(tmp_path: Path) -> None:
    from validation.__main__ import Settings, _judge

    judged, refused = _judge(Settings.load([f"trace=[{PLAIN},{DRAFTED}]", f"out={tmp_path}"]))
    assert [each.speed_up is not None for each in judged] == [False, True]
    line = f"{DRAFTED.name}: speed-up by drafts: E2E ×2.2"
    assert line in overview(judged, refused)
    html = page(judged, refused)
    assert line in html
    assert f"speed-up over {PLAIN.name}" in html
    assert "speed-up" not in Judged(judged[0].comparison, judged[0].split, None).text()


def test_a_twin_is_found_by_what_was_sent_whatever_it_is_called(drafted: Path) -> None:
    edit_meta(drafted, name="something else", workload=None)
    recording = Recording.read(drafted)
    twin = find_twin(recording, [], [drafted, OTHER, PLAIN])
    assert twin is not None
    assert twin.folder == PLAIN
    assert find_twin(recording, [twin], []) is twin
    assert find_twin(twin, [recording], [DRAFTED]) is None


@pytest.mark.parametrize("change", [{"weights": "fp8"}, {"gpu": "h200-sxm"}, {"num_gpu_blocks_override": 500}])
def test_another_engine_is_no_twin(drafted: Path, change: dict[str, object]) -> None:
    edit_meta(drafted, **change)
    assert find_twin(Recording.read(drafted), [], [PLAIN]) is None


def test_other_requests_are_no_twin(drafted: Path) -> None:
    table = pd.read_csv(drafted / "requests.csv.gz")
    for column, values in (("output_tokens", table.output_tokens + 1), ("arrival_s", table.arrival_s * 1.01)):
        edit_requests(drafted, **{"output_tokens": table.output_tokens, "arrival_s": table.arrival_s, column: values})
        assert find_twin(Recording.read(drafted), [], [PLAIN]) is None, column
    table.head(100).to_csv(drafted / "requests.csv.gz", index=False)
    assert find_twin(Recording.read(drafted), [], [PLAIN]) is None
