"""The command line, run as a user runs it."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from simulator.__main__ import main

ROOT = Path(__file__).parents[2]
MODEL = "h100-sxm/r1-distill-qwen-7b/bf16-kv_auto-tp1.json"

SMALL = """
defaults: [{model: r1-distill-qwen-7b}, {gpu: h100-sxm}, {opt: none}, {workload: gsm8k}, {slo: interactive}, _self_]
command: simulate
workload: {arrivals: {rate: 8}}
run: {num_requests: 60}
out: results
"""


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "simulator", *arguments]
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*arguments: str, cwd: Path) -> tuple[int, str, str]:
    process = start(*arguments, cwd=cwd)
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout, stderr


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder of the user's own, far from the clone, with a small configuration."""
    (tmp_path / "own.yaml").write_text(SMALL)
    return tmp_path


def results(folder: Path) -> Path:
    [found] = (folder / "results").iterdir()
    return found


def test_a_users_own_file_simulates_with_the_shipped_groups(here: Path) -> None:
    code, stdout, stderr = run("own.yaml", cwd=here)
    assert code == 0, stderr
    first = stdout.splitlines()[0]
    assert first.startswith("1 × h100-sxm with r1-distill-qwen-7b (bf16): ")
    assert "requests/s" in first
    assert "requests   60 completed" in stdout
    assert "SLO TPOT p99 at most 13 ms: met" in stdout
    assert len(stdout.splitlines()) <= 32
    assert "Traceback" not in stderr
    folder = results(here)
    assert str(folder.relative_to(here)) in stdout
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json", "summary.json", "requests.parquet", "steps.parquet", "timeline.parquet",
    }  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    requests = pq.read_table(folder / "requests.parquet")
    assert summary["completed"] == requests.num_rows == 60
    assert summary["total_output_tokens"] == sum(requests["output_tokens"].to_pylist())
    steps = pq.read_table(folder / "steps.parquet")
    assert steps["last_end_ns"].to_pylist() == sorted(steps["last_end_ns"].to_pylist())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["config"]["run"]["num_requests"] == 60
    assert manifest["cost_model"]["model"] == "r1-distill-qwen-7b"


def test_same_seed_same_bytes(here: Path) -> None:
    for out in ("a", "b"):
        assert run("own.yaml", f"out={out}", cwd=here)[0] == 0
    first, second = (next((here / out).iterdir()) for out in ("a", "b"))
    assert first.name == second.name
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_another_seed_is_another_run_and_the_same_replaces_its_own(here: Path) -> None:
    for seed in (0, 1, 1):
        assert run("own.yaml", f"seed={seed}", cwd=here)[0] == 0
    folders = list((here / "results").iterdir())
    assert len(folders) == 2
    assert len({(folder / "requests.parquet").read_bytes() for folder in folders}) == 2


def test_a_measured_trace_is_replayed(here: Path) -> None:
    trace = here / "trace"
    trace.mkdir()
    (trace / "meta.json").write_text(json.dumps({"format_version": 1, "name": "mine"}))
    rows = "".join(f"r{row},{row * 0.1},50,{100 + row}\n" for row in range(20))
    (trace / "requests.csv.gz").write_bytes(gzip.compress(b"request_id,arrival_s,prompt_tokens,output_tokens\n" + rows.encode()))
    code, stdout, stderr = run(str(ROOT / "conf" / "replay.yaml"), "workload.path=trace", cwd=here)
    assert code == 0, stderr
    assert "replay of mine" in stdout
    requests = pq.read_table(results(here) / "requests.parquet").to_pylist()
    assert [(row["request_id"], row["emitted_tokens"]) for row in requests] == [(f"r{row}", 100 + row) for row in range(20)]


def test_a_horizon_censors(here: Path) -> None:
    code, stdout, stderr = run("own.yaml", "run.horizon_s=5", cwd=here)
    assert code == 0, stderr
    assert "unfinished (censored)" in stdout
    text = (results(here) / "summary.json").read_text()
    assert json.loads(text)["censored"] > 0
    assert "NaN" not in text
    assert "Infinity" not in text


def test_help_teaches(here: Path) -> None:
    code, stdout, stderr = run("--help", cwd=here)
    assert code == 0
    assert not stderr
    assert stdout.count("python -m simulator conf/") >= 3
    for word in ("How many GPUs", "workload", "conf/model", "results/", "Exit status"):
        assert word in stdout


def test_infeasible_is_an_answer(here: Path) -> None:
    code, stdout, stderr = run("own.yaml", "command=plan", "plan.max_gpus=1", "workload.arrivals.rate=500", cwd=here)
    assert code == 0, stderr
    assert stdout.startswith("No number of GPUs up to 1 will do")
    assert json.loads((results(here) / "summary.json").read_text())["gpus"] is None


def test_variants_are_compared(here: Path) -> None:
    compared = ["command=compare", "+compare={variants: {crowded: ['engine.max_num_seqs=4']}, metrics: [ttft_s.p99], num_seeds: 2}"]
    code, stdout, stderr = run("own.yaml", *compared, cwd=here)
    assert code == 0, stderr
    assert stdout.startswith("baseline beside crowded. r1-distill-qwen-7b on h100-sxm.")
    folder = results(here)
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "summary.json", "report.html", "runs.parquet"}
    [_, crowded] = json.loads((folder / "summary.json").read_text())["rows"]
    assert crowded["ratio"]["low"] > 1
    runs = pq.read_table(folder / "runs.parquet").to_pylist()
    assert [(row["variant"], row["seed"]) for row in runs] == [("baseline", 0), ("baseline", 1), ("crowded", 0), ("crowded", 1)]
    assert json.loads((folder / "manifest.json").read_text())["variants"]["crowded"]["config"]["engine"] == {"max_num_seqs": 4}


def test_optimizations_are_weighed(here: Path) -> None:
    short = ["workload.arrivals.rate=1", "plan.hours=0.01", "plan.num_seeds=2", "workload.lengths.max_tokens=100"]
    code, stdout, stderr = run("own.yaml", "command=plan", "plan.opts=[none,kv_fp8]", *short, cwd=here)
    assert code == 0, stderr
    assert stdout.startswith("You need 1 GPU for r1-distill-qwen-7b on h100-sxm, without an optimization")
    assert "GSM8K 83 → 9" in stdout
    folder = results(here)
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "summary.json", "report.html"}
    none, kv_fp8 = json.loads((folder / "summary.json").read_text())["options"]
    assert (none["gpus"], kv_fp8["gpus"]) == (1, None)
    assert "plan.max_accuracy_drop=46" in kv_fp8["left_out"]


def test_a_reader_that_stops_is_no_error(here: Path) -> None:
    with start("own.yaml", cwd=here) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        stderr = process.stderr.read()
    assert process.returncode == 0
    assert "Traceback" not in stderr
    assert "BrokenPipe" not in stderr


def test_an_interrupt_is_one_line_and_leaves_nothing(here: Path) -> None:
    process = start("own.yaml", "run.num_requests=200000", "workload.arrivals.rate=100", cwd=here)
    assert process.stderr is not None
    assert "simulating" in process.stderr.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (130, "", "interrupted\n")
    assert not (here / "results").exists()


MISTAKES = {
    "no arguments": ([], ["CONFIG", "--help"]),
    "missing file": (["nope.yaml"], ["nope.yaml", "no such file", "conf/capacity_planning.yaml"]),
    "not YAML": (["own.txt"], ["own.txt", ".yaml"]),
    "unreadable YAML": (["broken.yaml"], ["broken.yaml", "YAML"]),
    "binary": (["binary.yaml"], ["binary.yaml"]),
    "a list": (["list.yaml"], ["list.yaml"]),
    "empty": (["empty.yaml"], ["empty.yaml", "command"]),
    "unknown option": (["own.yaml", "--fast"], ["--fast"]),
    "override without a value": (["own.yaml", "workload.arrivals.rate"], ["workload.arrivals.rate", "key=value"]),
    "malformed override": (["own.yaml", "workload.arrivals.rate=[3"], ["workload.arrivals.rate=[3"]),
    "several values": (["own.yaml", "seed=1,2"], ["seed=1,2", "one value"]),
    "Hydra's own settings": (["own.yaml", "hydra.run.dir=x"], ["hydra.run.dir"]),
    "defaults that are no list": (["defaults.yaml"], ["defaults.yaml", "list"]),
    "unknown key": (["own.yaml", "sedd=3"], ["sedd", "seed"]),
    "unknown key, deep": (["own.yaml", "workload.arrivals.rat=3"], ["workload.arrivals", "'rat'", "rate"]),
    "unknown engine option": (["own.yaml", "engine.max_num_seq=3"], ["max_num_seq", "did you mean max_num_seqs"]),
    "unknown group": (["own.yaml", "wrkload=aime24"], ["wrkload", "workload"]),
    "unknown group choice": (["own.yaml", "workload=aime2"], ["workload/aime2", "aime24"]),
    "unknown GPU": (["own.yaml", "gpu=h300"], ["gpu/h300", "h100-sxm"]),
    "unknown router": (["own.yaml", "cluster.router=best"], ["cluster.router", "best", "least_requests"]),
    "unknown command": (["own.yaml", "command=guess"], ["command", "guess", "plan"]),
    "unknown SLO": (["own.yaml", "slo.latency=3"], ["slo", "latency", "tpot_ms"]),
    "bad percentile": (["own.yaml", "slo.tpot_ms.p101=3"], ["slo.tpot_ms", "p101"]),
    "negative rate": (["own.yaml", "workload.arrivals.rate=-1"], ["workload.arrivals.rate", "-1"]),
    "not a number": (["own.yaml", "run.num_requests=many"], ["run.num_requests", "many"]),
    "cap below minimum": (["own.yaml", "workload.lengths.max_tokens=0"], ["workload.lengths", "max_tokens"]),
    "unknown lengths": (["own.yaml", "workload.lengths.name=gpt/x"], ["workload.lengths", "gpt/x", "r1-distill-qwen-7b"]),
    "endless": (["own.yaml", "run.num_requests=null"], ["run.duration_s", "run.num_requests"]),
    "missing value": (["own.yaml", "seed=???"], ["seed"]),
    "interpolation": (["own.yaml", "seed=${sed}"], ["seed", "sed"]),
    "not measured": (
        ["own.yaml", "opt=eagle3", "opt.speculative.num_speculative_tokens=5"],
        ["bf16-kv_auto-tp1-eagle3-k5", "measured", "bf16-kv_auto-tp1"],
    ),
    "no cost model": (["own.yaml", "opt.weights=int3"], ["int3-kv_auto-tp1", "bf16-kv_auto-tp1"]),
    "accuracy lost": (["own.yaml", "command=plan", "opt=kv_fp8"], ["GSM8K 83 → 9", "plan.max_accuracy_drop=46"]),
    "unknown optimization to weigh": (["own.yaml", "command=plan", "plan.opts=[awk]"], ["plan.opts", "opt/awk", "awq"]),
    "missing artifact": (["own.yaml", "cost_model=nope.json"], ["nope.json", "no such file"]),
    "corrupt artifact": (["own.yaml", "cost_model=corrupt.json"], ["corrupt.json", "JSON"]),
    "wrong artifact": (["own.yaml", "cost_model=wrong.json"], ["wrong.json", "memory.num_gpu_blocks"]),
    "engine too small": (["own.yaml", "engine.num_gpu_blocks_override=100"], ["engine", "max_model_len"]),
    "engine option of another type": (["own.yaml", "engine.max_num_seqs=few"], ["engine.max_num_seqs", "few"]),
    "missing trace": (["own.yaml", "workload=replay", "~workload.arrivals", "workload.path=nope"], ["nope", "no such trace"]),
    "corrupt trace": (["own.yaml", "workload=replay", "~workload.arrivals", "workload.path=corrupt.csv.gz"], ["corrupt.csv.gz"]),
    "results cannot be written": (["own.yaml", "out=own.yaml"], ["out", "own.yaml"]),
    "nothing to compare": (["own.yaml", "command=compare"], ["compare.variants", "compare.metrics"]),
    "unknown metric": (["own.yaml", "+compare={variants: {a: []}, metrics: [speed]}"], ["compare.metrics", "speed", "tpot_ms"]),
    "malformed variant": (
        ["own.yaml", "command=compare", "+compare={variants: {a: ['opt=awk']}, metrics: [duration_s]}"],
        ["compare.variants.a", "opt/awk", "awq"],
    ),
    "plan without SLOs": (["own.yaml", "command=plan", "slo=null"], ["slo", "tpot_ms"]),
}


@pytest.fixture
def mistaken(here: Path) -> Path:
    """The user's folder, with the files that the mistakes are about."""
    artifact = json.loads((ROOT / "models" / MODEL).read_text())
    artifact["memory"]["num_gpu_blocks"] = "plenty"
    files = {
        "own.txt": SMALL,
        "broken.yaml": "command: [simulate\nmodel: }",
        "list.yaml": "- command\n- simulate\n",
        "empty.yaml": "",
        "defaults.yaml": "defaults: 3",
        "corrupt.json": "{",
        "wrong.json": json.dumps(artifact),
    }
    for name, text in files.items():
        (here / name).write_text(text)
    for name in ("binary.yaml", "corrupt.csv.gz"):
        (here / name).write_bytes(b"\x1f\x8b\xff\xfe")
    return here


def check_mistake(mistake: str, code: int, stdout: str, stderr: str) -> None:
    assert code == 2, stderr
    assert stdout == ""
    *progress, line = stderr.splitlines()
    assert all(text.startswith("simulating") for text in progress), stderr
    assert line.startswith("error: ")
    for name in MISTAKES[mistake][1]:
        assert name in line, line


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistaken: Path, mistake: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(mistaken)
    before = sorted(mistaken.rglob("*"))
    code = main(MISTAKES[mistake][0])
    check_mistake(mistake, code, *capsys.readouterr())
    assert sorted(mistaken.rglob("*")) == before


@pytest.mark.parametrize("mistake", ["no arguments", "missing file", "unknown key, deep", "corrupt artifact", "corrupt trace"])
def test_a_mistake_exits_with_2(mistaken: Path, mistake: str) -> None:
    """The same in a process of its own: nothing of the interpreter's is printed on the way out."""
    check_mistake(mistake, *run(*MISTAKES[mistake][0], cwd=mistaken))
