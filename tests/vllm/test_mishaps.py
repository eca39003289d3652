"""What ends a profile early, on vLLM's CPU build: one clear line, what was measured is kept, and the same command goes on."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from profiler.parts import Parts
from tests.support.profiling import START_S, command, last_line

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]

DISK_KIB = 16
"""Room for a few points."""
FIRST_POINTS = 1000
"""Bytes of the profile's identity and of the first measured points."""


def mount(disk: Path, *options: str) -> bool:
    arguments = ["/usr/bin/mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(disk)]
    return Path(arguments[0]).exists() and not subprocess.run(arguments, capture_output=True, check=False).returncode


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small one of its own."""
    if not mount(tmp_path, f"size={DISK_KIB}k"):
        pytest.skip("this user may not mount a disk")
    yield tmp_path
    subprocess.run(["/usr/bin/umount", str(tmp_path)], check=True)


def measured(out: Path) -> list[str]:
    """Names of the points that are whole in the file, in order."""
    parts = Parts(out, {})
    return [point["point"] for point in parts.points]


def finished(out: Path, arguments: list[str], kept: list[str]) -> None:
    """The same command measures the rest, and nothing twice."""
    again = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    document = json.loads((out / "profile.json").read_text())
    names = [point["point"] for point in document["points"]]
    assert names[: len(kept)] == kept
    assert len(set(names)) == len(names) == document["points_in_grid"] > len(kept)


def test_a_full_disk(disk: Path) -> None:
    out = disk / "profile"
    arguments = command("kinds=[decode,prefill]", f"out={out}", "budget_s=600")
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    kept = measured(out)
    assert kept
    assert last_line(done.stderr) == f"{out / 'points.jsonl.gz'}: No space left on device; {len(kept)} points are kept there"
    assert mount(disk, "remount", "size=4m")
    finished(out, arguments, kept)


def test_a_killed_engine(tmp_path: Path) -> None:
    points = tmp_path / "points.jsonl.gz"
    # Seconds of measuring are left when it is killed: the decode points alone take half of one.
    arguments = command("kinds=[decode,prefill]", f"out={tmp_path}", "budget_s=600")
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        begin_s = time.monotonic()
        while time.monotonic() < begin_s + START_S and not (points.exists() and points.stat().st_size > FIRST_POINTS):
            time.sleep(0.02)
        os.kill(first.pid, signal.SIGKILL)
    assert first.returncode == -signal.SIGKILL
    kept = measured(tmp_path)
    assert kept
    finished(tmp_path, arguments, kept)


def test_a_start_out_of_memory(tmp_path: Path) -> None:
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "4000"}
    done = subprocess.run(command(f"out={tmp_path}"), capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert last_line(done.stderr).startswith("vLLM did not start: ")
    assert "memory" in last_line(done.stderr)
    assert "Traceback" not in done.stderr


def test_a_start_alone_tells_the_memory(tmp_path: Path) -> None:
    """The cheapest look at another setting: no point is measured."""
    done = subprocess.run(command("kinds=[]", f"out={tmp_path}"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "profile.json").read_text())
    assert document["points_in_grid"] == 0
    assert document["engine"]["num_gpu_blocks"] == document["memory"]["num_gpu_blocks"] > 2
