"""A trace that was cut is replayed until then: what had ended is compared, what had not is simulated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.errors import UserError
from validation.__main__ import TRACES, main
from validation.compare import compare
from validation.protocol import measured
from validation.replay import Recording, replay
from validation.split import split
from validation.table import as_json, as_text

SHIPPED = TRACES / "h100-r1-distill-qwen-7b-bf16-gamma"
CUT_S = 60.0


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a recorder would have written of the simulator itself, over capacity and cut: a replay must agree with it in everything."""
    folder = tmp_path_factory.mktemp("traces") / "cut"
    folder.mkdir()
    meta = json.loads((SHIPPED / "meta.json").read_text()) | {"num_gpu_blocks_override": 4000}
    (folder / "meta.json").write_text(json.dumps(meta))
    shutil.copy(SHIPPED / "requests.csv.gz", folder)
    whole = replay(Recording.read(folder), cost_model=None, router=None, seed=0)
    asked = pd.read_csv(SHIPPED / "requests.csv.gz", dtype={"request_id": str})[
        ["request_id", "arrival_s", "prompt_tokens", "output_tokens"]
    ]
    rows = asked.merge(pd.DataFrame(whole.columns()), on="request_id")
    rows = rows[rows["arrival_s"] < CUT_S]
    unfinished = rows["arrival_s"] + rows["e2e_s"] > CUT_S
    rows.loc[unfinished, ["e2e_s", "itl_p50_s", "itl_p99_s", "itl_max_s"]] = np.nan
    rows.loc[rows["arrival_s"] + rows["ttft_s"] > CUT_S, "ttft_s"] = np.nan
    assert rows["ttft_s"].isna().sum() < unfinished.sum() < len(rows) - 20
    rows.to_csv(folder / "requests.csv.gz", index=False)
    (folder / "meta.json").write_text(json.dumps(meta | {"cut_s": CUT_S, "duration_s": CUT_S}))
    # Preemptions and tokens until the cut, as the recorder's engine counts them.
    seen = replay(Recording.read(folder), cost_model=None, router=None, seed=0).until_cut
    by_name = pd.DataFrame({"request_id": seen.requests.request_id, "p": seen.preemptions, "t": seen.emitted_tokens}).set_index(
        "request_id"
    )
    rows["preemptions"], rows["received_tokens"] = (by_name.loc[rows["request_id"], name].to_numpy() for name in "pt")
    assert 0 < rows["preemptions"].sum() < whole.result.preemptions.sum()
    assert 0 < rows["received_tokens"].sum() < rows["output_tokens"].sum()
    rows.to_csv(folder / "requests.csv.gz", index=False)
    return folder


def test_what_had_ended_is_compared_and_what_had_not_is_not(cut: Path) -> None:
    comparison = compare(replay(Recording.read(cut), cost_model=None, router=None, seed=0))
    rows = pd.read_csv(cut / "requests.csv.gz")
    told = as_json(comparison)
    assert told["requests"] == len(rows)
    assert told["unfinished"] == rows["e2e_s"].isna().sum() > 0
    # Arrivals after the cut are missing, but the first requests after it have no part in what is compared.
    for name in ("e2e_s", "tpot_s", "ttft_s", "itl_p99_s"):
        assert np.isfinite(comparison.simulated[name]).sum() <= len(rows) - told["unfinished"]
        assert list(comparison.rows[name].errors.values()) == pytest.approx([0.0] * 4, abs=1e-6), name
    assert told["preemptions"]["measured"] == told["preemptions"]["simulated"] > 0
    assert told["errors"]["duration_s"] is None
    assert told["errors"]["output_tokens_per_s"] == pytest.approx(0.0, abs=1e-9)
    assert f"{told['unfinished']} requests had not ended then" in as_text(comparison)
    assert split(comparison).why_not


def test_a_reader_does_without_the_further_column(cut: Path, tmp_path: Path) -> None:
    shutil.copytree(cut, tmp_path / "cut")
    rows = pd.read_csv(cut / "requests.csv.gz", dtype={"request_id": str})
    rows.drop(columns="received_tokens").to_csv(tmp_path / "cut" / "requests.csv.gz", index=False)
    assert main([f"trace={tmp_path / 'cut'}", f"out={tmp_path / 'out'}"]) == 0
    assert (
        as_json(compare(replay(Recording.read(tmp_path / "cut"), cost_model=None, router=None, seed=0)))["errors"]["output_tokens_per_s"]
        is None
    )


def test_a_missing_latency_is_a_mistake_where_nothing_was_cut(cut: Path, tmp_path: Path) -> None:
    shutil.copytree(cut, tmp_path / "cut")
    meta = json.loads((cut / "meta.json").read_text())
    (tmp_path / "cut" / "meta.json").write_text(json.dumps(meta | {"cut_s": None}))
    with pytest.raises(UserError, match="is not a positive number"):
        compare(replay(Recording.read(tmp_path / "cut"), cost_model=None, router=None, seed=0))


def test_a_decision_is_not_judged_by_a_window_that_was_cut(cut: Path) -> None:
    with pytest.raises(UserError, match="had not ended when the run was cut"):
        measured(cut, (20.0, CUT_S))
