"""Packed measurements are smaller, and say the same."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from profiler.pack import SCHEDULE_DIGITS, STEP_DIGITS, UNREAD_COLUMNS, USAGE_DIGITS, main
from profiler.parts import Parts
from profiler.trace import read_trace
from simulator.artifacts.models import MODELS
from validation.__main__ import TRACES
from validation.measured import measured_steps

CALIBRATION = MODELS / "h100-sxm" / "service" / "r1-distill-qwen-7b-bf16"
LARGEST_TRACE_BYTES = 600_000
"""Twelve traces and more lie in the repository."""


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A recorded trace, as its recorder wrote it: a calibration's columns are still all there."""
    folder = tmp_path / "trace"
    folder.mkdir()
    for name in ("meta.json", "requests.csv.gz"):
        (folder / name).write_bytes((CALIBRATION / name).read_bytes())
    pd.read_csv(CALIBRATION / "steps.csv.gz").assign(accepted_seqs="").to_csv(folder / "steps.csv.gz", index=False)
    return folder


def test_a_packed_trace_says_the_same_to_10_microseconds(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, requests = read_trace(trace), gzip.decompress((trace / "requests.csv.gz").read_bytes())
    size = (trace / "steps.csv.gz").stat().st_size
    assert main([str(trace)]) == 0
    assert "→" in capsys.readouterr().out
    assert (trace / "steps.csv.gz").stat().st_size < 0.7 * size
    assert gzip.decompress((trace / "requests.csv.gz").read_bytes()) == requests
    after, found = read_trace(trace), measured_steps(trace)
    assert found is not None
    assert set(before.steps) - set(after.steps) == set(UNREAD_COLUMNS)
    for name in after.steps:
        if after.steps[name].dtype == np.float64:
            digits = {"kv_usage": USAGE_DIGITS, "schedule_s": SCHEDULE_DIGITS}.get(name, STEP_DIGITS)
            assert (after.steps[name] - before.steps[name]).abs().max() < 0.51 * 10**-digits
        else:
            assert after.steps[name].equals(before.steps[name]), name


def test_packing_again_changes_nothing(trace: Path) -> None:
    main([str(trace)])
    packed = [path.read_bytes() for path in sorted(trace.iterdir())]
    assert main([str(trace)]) == 0
    assert [path.read_bytes() for path in sorted(trace.iterdir())] == packed


def test_a_file_by_itself_keeps_its_content(trace: Path) -> None:
    path = trace / "steps.csv.gz"
    content, size = gzip.decompress(path.read_bytes()), path.stat().st_size
    assert main([str(path)]) == 0
    assert gzip.decompress(path.read_bytes()) == content
    assert path.stat().st_size <= size


def test_a_grid_goes_on_from_packed_points(tmp_path: Path) -> None:
    identity = {"model": "tiny", "rms_norm_eps": 1e-12}
    rows = [{"gpu_s": 0.1234567894, "decode_seqs": 4}, {"gpu_s": float("nan"), "decode_seqs": 4}]
    for name in "ab":
        Parts(tmp_path, identity).add({"point": name, "kind": "decode", "rows": list(rows)})
    before = Parts(tmp_path, identity).steps()
    assert before["gpu_s"].iloc[0] == 0.123456789
    assert main([str(tmp_path / "points.jsonl.gz")]) == 0
    again = Parts(tmp_path, identity)
    assert again.steps().equals(before)
    again.add({"point": "c", "kind": "decode", "rows": list(rows)})
    assert Parts(tmp_path, identity).done == {"a", "b", "c"}


def test_points_of_older_profilers_are_cut_to_nanoseconds(tmp_path: Path) -> None:
    path = tmp_path / "fp8.points.jsonl.gz"
    lines = [{"eps": 1e-12}, {"point": "a", "took_s": 0.30000000000000004, "steps": {"gpu_s": [0.1000000000000123], "n": [3]}}]
    path.write_bytes(b"".join(gzip.compress(json.dumps(line).encode() + b"\n") for line in lines))
    assert main([str(path)]) == 0
    identity, point = map(json.loads, gzip.decompress(path.read_bytes()).splitlines())
    assert (identity, point) == ({"eps": 1e-12}, {"point": "a", "took_s": 0.3, "steps": {"gpu_s": [0.1], "n": [3]}})


@pytest.mark.parametrize("name", ["", "notes.txt", "torn.csv.gz", "nowhere.csv.gz"])
def test_what_cannot_be_packed_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("x")
    torn = gzip.compress(b"a,b\n1,2\n")[:-4]
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "torn.csv.gz").write_bytes(torn)
    path = folder if not name else (folder / name if name == "torn.csv.gz" else tmp_path / name)
    assert main([str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("folder", sorted(path.parent for path in TRACES.glob("*/meta.json")), ids=lambda folder: folder.name)
def test_shipped_traces_are_packed(folder: Path) -> None:
    steps = measured_steps(folder)
    assert steps is None or not set(UNREAD_COLUMNS) & set(steps)
    assert sum(path.stat().st_size for path in folder.iterdir()) < LARGEST_TRACE_BYTES
