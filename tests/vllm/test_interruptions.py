"""A profile that is ended again and again, on vLLM's CPU build: it continues, and its artifact is that of its measurements."""

import gzip
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from profiler.export import artifact_json
from profiler.fit_profile import fit_profile
from profiler.parts import Parts
from profiler.raw import Raw
from tests.support.profiling import START_S, command, last_line

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]

KINDS = "kinds=[decode,prefill,mixed]"
BEFORE_ITS_ENGINE_STARTS, FIRST_POINTS, SOME_POINTS = 0, 1000, 4000
"""Bytes of measured points at which a run is ended; all points together are some 30,000, so that a late end still is an early one."""


def ended(arguments: list[str], points: Path, further_bytes: int, *signals: signal.Signals) -> tuple[int, str]:
    """Starts a run and ends it, with all its processes, after so much was measured; returns its exit status and its last line."""
    before = points.stat().st_size if points.exists() else 0
    run = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s and run.poll() is None:
        if points.exists() and points.stat().st_size >= before + further_bytes:
            break
        time.sleep(0.02)
    assert run.poll() is None, f"it ended by itself: {last_line(run.communicate()[1])}"
    for signum in signals:
        os.killpg(run.pid, signum)
    _, said = run.communicate(timeout=START_S)
    # Python ends by the signal itself where it struck code that is made of a string; shells call both 130.
    return 130 if run.returncode == -signal.SIGINT else run.returncode, last_line(said) if said.strip() else ""


def test_however_it_is_ended_the_artifact_is_that_of_its_measurements(tmp_path: Path) -> None:
    cut, straight = tmp_path / "cut", tmp_path / "straight"
    arguments = command(KINDS, f"out={cut}", "budget_s=600")
    points = cut / "points.jsonl.gz"
    told = f"interrupted: what was measured is in {cut}; the same command continues"
    # `timeout` sends its signal twice.
    assert ended(arguments, points, BEFORE_ITS_ENGINE_STARTS, signal.SIGTERM, signal.SIGTERM) == (130, told)
    assert ended(arguments, points, SOME_POINTS, signal.SIGINT) == (130, told)
    kept = [point["point"] for point in Parts(cut, {}).points]
    assert kept
    assert ended(arguments, points, SOME_POINTS, signal.SIGKILL)[0] == -signal.SIGKILL
    with points.open("ab") as file:  # what a machine that goes down leaves
        file.write(gzip.compress(b'{"point": "decode')[:20])
    last = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr

    identity, *measured = (json.loads(line) for line in gzip.decompress(points.read_bytes()).splitlines())
    names = [point["point"] for point in measured]
    assert names[: len(kept)] == kept
    document = json.loads((cut / "profile.json").read_text())
    assert len(set(names)) == len(names) == document["points_in_grid"] > len(kept)

    parts = Parts(straight, identity)
    for point in measured:
        columns = point.pop("steps")
        parts.add(point | {"rows": [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]})
    again = subprocess.run(command(KINDS, f"out={straight}", "budget_s=600"), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert [point["point"] for point in Parts(straight, {}).points] == names
    assert (straight / "steps.csv.gz").read_bytes() == (cut / "steps.csv.gz").read_bytes()
    artifacts = [fit_profile(Raw.read(folder))[0] for folder in (straight, cut)]
    # When it was written, and how long its engine took to start, is its own.
    alike = [artifact_json(artifact.model_copy(update={"provenance": artifacts[0].provenance})) for artifact in artifacts]
    assert alike[0] == alike[1]


def test_a_start_out_of_memory_keeps_what_was_measured(tmp_path: Path) -> None:
    arguments = command(KINDS, f"out={tmp_path}", "budget_s=600")
    points = tmp_path / "points.jsonl.gz"
    assert ended(arguments, points, FIRST_POINTS, signal.SIGKILL)[0] == -signal.SIGKILL
    kept = [point["point"] for point in Parts(tmp_path, {}).points]
    assert kept
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "4000"}
    full = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    assert full.returncode == 1, full.stderr
    assert last_line(full.stderr).startswith("vLLM did not start: "), full.stderr
    assert "Traceback" not in full.stderr
    assert [point["point"] for point in Parts(tmp_path, {}).points] == kept
