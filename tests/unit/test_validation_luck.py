"""Several replays of one trace: how far chance moves the errors, beside those of the one that is compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from validation.__main__ import TRACES, main
from validation.compare import PER_REQUEST, compare
from validation.intervals import STATISTICS
from validation.luck import luck
from validation.replay import Recording, replay

OVER = TRACES / "h100-r1-distill-qwen-7b-bf16-over"


def test_the_range_holds_what_is_compared_and_each_replay_adds_to_it() -> None:
    comparison = compare(replay(Recording.read(OVER), cost_model=None, router=None, seed=3))
    assert luck(comparison, 1) is None
    two, three = luck(comparison, 2), luck(comparison, 3)
    assert two is not None
    assert three is not None
    other = compare(replay(Recording.read(OVER), cost_model=None, router=None, seed=4))
    for name in PER_REQUEST:
        for statistic in STATISTICS:
            here, there = (each.rows[name].errors[statistic] for each in (comparison, other))
            assert here is not None
            assert there is not None
            assert two.errors[name][statistic] == pytest.approx((min(here, there), max(here, there)), abs=1e-12)
            assert three.errors[name][statistic][0] <= two.errors[name][statistic][0]
            assert three.errors[name][statistic][1] >= two.errors[name][statistic][1]
    # Over capacity, a launch that takes longer changes who is preempted.
    assert two.errors["e2e_s"]["mean"][0] < two.errors["e2e_s"]["mean"][1]
    assert set(two.preemptions) == {comparison.preemptions.simulated, other.preemptions.simulated}


def test_it_is_told_in_text_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"trace={OVER}", "replays=2", f"out={tmp_path}"]) == 0
    text = capsys.readouterr().out
    assert "2 replays: lowest … highest" in text
    assert main([f"trace={OVER}", "replays=2", "format=json", f"out={tmp_path}"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["replays"]["number"] == 2
    low, high = found["replays"]["errors"]["e2e_s"]["mean"]
    assert low <= found["errors"]["e2e_s"]["mean"] <= high
    assert main([f"trace={OVER}", "replays=0", f"out={tmp_path}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
