"""Recording on vLLM's CPU build: through the server too, and what becomes of a trace that is cut."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

from simulator.workload import generate, validate
from tests.support.profiling import START_S, command, computed_tokens, fed_tokens

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("client", ["engine", "http"])
def test_what_is_stopped_keeps_what_it_has(tmp_path: Path, client: str) -> None:
    """As `timeout` does it: a signal to the whole process group, the engine's included."""
    out, told = tmp_path / "cut", tmp_path / "stderr"
    traffic = (
        f"client={client}",
        "workload.arrivals.rate=20",
        "workload.lengths.max_tokens=400",
        "duration_s=200",
        "num_gpu_blocks_override=24",
    )
    with told.open("w") as stderr:
        arguments = command(*traffic, f"out={out}", module="profiler.record")
        recorder = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True)
    until_s = time.monotonic() + 2 * START_S
    while time.monotonic() < until_s and not re.search(r" [1-9]\d+/\d+ \[", told.read_text()):
        time.sleep(0.1)
    os.killpg(recorder.pid, signal.SIGTERM)
    said, _ = recorder.communicate(timeout=120)
    assert recorder.returncode == 130, told.read_text()
    requests, steps = (pd.read_csv(out / f"{name}.csv.gz") for name in ("requests", "steps"))
    unfinished = requests["e2e_s"].isna()
    assert f"{unfinished.sum()} requests unfinished" in said
    assert 0 < unfinished.sum() < len(requests)
    assert (requests["received_tokens"] == requests["output_tokens"])[~unfinished].all()
    assert (requests["received_tokens"] < requests["output_tokens"])[unfinished].all()
    assert (requests["ttft_s"].isna() == (requests["received_tokens"] == 0)).all()
    meta = json.loads((out / "meta.json").read_text())
    # Some tokens were on their way when the client stopped to listen: those of half a second at most, however busy the machine.
    latest = steps["update_s"] > meta["cut_s"] - 0.5
    assert 0 <= steps["emitted_tokens"].sum() - requests["received_tokens"].sum() <= steps.loc[latest, "emitted_tokens"].sum()
    assert requests["preemptions"].sum() == steps["preempted"].sum() > 0
    assert meta["cut_s"] == meta["duration_s"] > requests["arrival_s"].max()
    assert steps["schedule_s"].max() <= meta["cut_s"]
    again = generate(validate({"kind": "replay", "path": str(out)}), 0, max_model_len=1024)
    assert again.requests.output_tokens.sum() == requests["output_tokens"].sum()


def test_a_budget_that_the_start_takes_is_said(tmp_path: Path) -> None:
    done = subprocess.run(command(f"out={tmp_path}", "budget_s=9", module="profiler.record"), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "budget_s=9 went into the engine's start" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_through_the_server_the_same_is_recorded(tmp_path: Path) -> None:
    """Through the seconds, too, in which the server closes the hundreds of connections that are idle since the warm-up."""
    traffic = (
        "client=http",
        "max_num_seqs=512",
        "workload.lengths.max_tokens=2",
        "workload.arrivals.rate=30",
        "duration_s=10",
        f"out={tmp_path}",
    )
    done = subprocess.run(command(*traffic, module="profiler.record"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    requests, steps = (pd.read_csv(tmp_path / f"{name}.csv.gz") for name in ("requests", "steps"))
    assert requests["output_tokens"].sum() == steps["emitted_tokens"].sum()
    assert computed_tokens(steps) == fed_tokens(requests)
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert "HTTP client" in meta["client"]
    assert meta["engine"]["num_gpu_blocks"] > 2
    assert meta["host"]["python_us"] > 0
    assert 0 < meta["overheads"]["ingress_s"] < 1
