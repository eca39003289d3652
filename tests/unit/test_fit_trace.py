"""From a recorded trace to an artifact, on small traces that an asynchronous toy engine writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from profiler.fit_trace import fit_trace, main
from profiler.overheads import ingress, overheads
from profiler.steps import as_matrix, busy_steps, replay
from profiler.trace import read_trace
from simulator.artifacts.artifact import Artifact
from simulator.artifacts.models import find
from simulator.cost import CostModel
from simulator.engine import EngineConfig, GraphMode
from simulator.errors import UserError
from simulator.features import StepFeatures

BUDGET = 8192
META = {
    "format_version": 1, "name": "toy", "gpu": "toy-gpu", "num_gpus": 1, "model": "toy-7b", "weights": "bf16", "kv_cache_dtype": "auto",
    "prefix_caching": False, "speculative": None, "tensor_parallel_size": 1,
    "engine": {
        "name": "vllm", "version": "0.26.0", "max_model_len": 32768, "max_num_batched_tokens": BUDGET, "max_num_seqs": 1024,
        "block_size": 16, "num_gpu_blocks": 5000, "async_scheduling": True, "enable_chunked_prefill": True,
    },
}  # fmt: skip
INGRESS_NS, EGRESS_NS = 700_000, 3_000_000
Requests = list[tuple[float, int, int]]


def step_ns(features: StepFeatures) -> int:
    prefill_ns = {GraphMode.NONE: 1.5e4 * features.prefill_tokens, GraphMode.PIECEWISE: 1e6 * features.prefill_seqs, GraphMode.FULL: 0.0}
    return round(6e6 + 5e3 * features.padded_tokens + 18.0 * features.decode_context_tokens + prefill_ns[features.graph_mode])


class ToyEngine:
    """Serves requests (arrival_s, prompt tokens, output tokens) step by step, two steps deep, and keeps every step's features."""

    def __init__(self, requests: Requests, *, budget: int = BUDGET) -> None:
        self.requests = [(round(arrival * 1e9), prompt, output) for arrival, prompt, output in requests]
        self.graphs = EngineConfig(num_gpu_blocks=5000).graphs
        self.budget = budget
        self.features: list[StepFeatures] = []
        self.rows: list[dict[str, float]] = []
        self.first_ns = [0] * len(requests)
        self.last_ns = [0] * len(requests)
        self._waiting = list(range(len(requests)))
        self._computed = dict.fromkeys(self._waiting, 0)
        self._decoding: dict[int, int] = {}
        self._serve()

    def _serve(self) -> None:
        now = gpu_ns = 0
        in_flight: list[tuple[int, list[int]]] = []
        while self._waiting or self._decoding or in_flight:
            while len(in_flight) < 2 and (composed := self._compose(now)):
                features, emitting = composed
                gpu_ns = max(gpu_ns, now) + step_ns(features)
                in_flight.append((gpu_ns, emitting))
                self._record(now, gpu_ns, features)
            if not in_flight:
                now = self.requests[self._waiting[0]][0] + INGRESS_NS
                continue
            now, emitting = in_flight.pop(0)
            for request in emitting:
                self.first_ns[request] = self.first_ns[request] or now
                self.last_ns[request] = now

    def _compose(self, now: int) -> tuple[StepFeatures, list[int]] | None:
        decoding = dict(self._decoding)
        left, chunks = self.budget - len(decoding), []
        for request in self._waiting:
            arrival, prompt, _ = self.requests[request]
            if arrival + INGRESS_NS > now or not left:
                break
            tokens = min(prompt - self._computed[request], left)
            self._computed[request] += tokens
            left -= tokens
            chunks.append((request, tokens, self._computed[request]))
        if not chunks and not decoding:
            return None
        finished = [request for request, _, end in chunks if end == self.requests[request][1]]
        self._waiting = [request for request in self._waiting if request not in finished]
        contexts = [self.requests[request][1] + emitted for request, emitted in decoding.items()]
        emitting = [*finished, *decoding]
        for request in emitting:
            self._decoding[request] = self._decoding.get(request, 0) + 1
            if self._decoding[request] == self.requests[request][2]:
                del self._decoding[request]
        tokens = sum(tokens for _, tokens, _ in chunks)
        padded, mode = self.graphs.pad(tokens + len(decoding), not chunks)
        ends, attention = sum(end for *_, end in chunks), sum(tokens * end - tokens * (tokens - 1) // 2 for _, tokens, end in chunks)
        context, longest = sum(contexts), max(contexts, default=0)
        return StepFeatures(len(chunks), tokens, ends, attention, len(decoding), context, longest, 0, padded, mode), emitting

    def _record(self, now: int, end: int, features: StepFeatures) -> None:
        recorded = ("prefill_seqs", "prefill_tokens", "prefill_context_tokens", "decode_seqs", "decode_context_tokens")
        row = {"schedule_s": now / 1e9, "update_s": end / 1e9, **{name: getattr(features, name) for name in recorded}}
        self.rows.append({**row, "decode_tokens": features.decode_seqs, "kv_usage": 0.0, "running": 1, "waiting": 0, "preempted": 0})
        self.features.append(features)

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame(self.requests, columns=["arrival_s", "prompt_tokens", "output_tokens"])
        for name, at_ns in (("ttft_s", self.first_ns), ("e2e_s", self.last_ns)):
            table[name] = (np.array(at_ns) + EGRESS_NS - table["arrival_s"]) / 1e9
        table["arrival_s"] /= 1e9
        table.insert(0, "request_id", range(len(table)))
        table.to_csv(folder / "requests.csv.gz", index=False)
        pd.DataFrame(self.rows).to_csv(folder / "steps.csv.gz", index=False)
        (folder / "meta.json").write_text(json.dumps(META))
        return folder


def traffic(n: int = 150, seed: int = 3, prompt: int = 300) -> Requests:
    random = np.random.default_rng(seed)
    arrivals = np.cumsum(random.exponential(0.08, n))
    return [(float(a), int(random.integers(1, prompt)), int(random.integers(1, 120))) for a in arrivals]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[ToyEngine, Path]:
    engine = ToyEngine(traffic())
    return engine, engine.write(tmp_path_factory.mktemp("trace"))


def test_features_are_those_of_the_engine(toy: tuple[ToyEngine, Path]) -> None:
    engine, folder = toy
    replayed = replay(read_trace(folder))
    assert as_matrix(replayed.features).tolist() == [list(features) for features in engine.features]


def test_prompts_in_chunks_are_followed(tmp_path: Path) -> None:
    engine = ToyEngine(traffic(60, prompt=3000), budget=700)
    replayed = replay(read_trace(engine.write(tmp_path)))
    assert as_matrix(replayed.features).tolist() == [list(features) for features in engine.features]
    assert (replayed.features.prefill_context_tokens > replayed.features.prefill_tokens).any()
    ends_ns = np.array([round(row["update_s"] * 1e9) for row in engine.rows])
    assert ends_ns[replayed.first_token_step].tolist() == engine.first_ns


def test_requests_that_overtake_each_other_are_found(tmp_path: Path) -> None:
    folder = ToyEngine(traffic()).write(tmp_path)
    before = replay(read_trace(folder))
    table = pd.read_csv(folder / "requests.csv.gz")
    # Sent a moment apart, received in the other order: the engine's steps stay as they are.
    swapped = next(k for k in range(5, 100) if before.first_token_step[k + 1] - before.first_token_step[k] == 1)
    table.loc[[swapped, swapped + 1], "arrival_s"] = table.loc[[swapped + 1, swapped], "arrival_s"].to_numpy()
    table.to_csv(folder / "requests.csv.gz", index=False)
    after = replay(read_trace(folder))
    assert as_matrix(after.features).tolist() == as_matrix(before.features).tolist()
    assert after.first_token_step[swapped] == before.first_token_step[swapped + 1]


def test_idle_time_is_no_steps_time(tmp_path: Path) -> None:
    engine = ToyEngine([(0.0, 50, 30), (0.1, 60, 40), (9.0, 50, 30), (20.0, 10, 5)])
    trace = read_trace(engine.write(tmp_path))
    steps = busy_steps(trace, replay(trace))
    assert len(steps) == len(engine.rows) - 3
    assert sorted(set(steps.run.tolist())) == [1, 2, 3]
    busy = [features for features in engine.features if features.decode_seqs]
    assert steps.duration_ns.tolist() == [step_ns(features) for features in busy]


def test_overheads_are_read_off_the_trace(toy: tuple[ToyEngine, Path]) -> None:
    engine, folder = toy
    trace = read_trace(folder)
    replayed = replay(trace)
    delay_s, share = ingress(trace, replayed)
    assert share == 1.0
    assert delay_s * 1e9 == pytest.approx(INGRESS_NS, abs=300_000)
    predicted = np.array([float(step_ns(features)) for features in engine.features])
    ways = overheads(trace, replayed, predicted)
    assert ways.egress_ns == pytest.approx(EGRESS_NS, abs=1000)
    assert ways.schedule_ns == 0


def test_the_wait_behind_a_launch_is_part_of_the_way_out(toy: tuple[ToyEngine, Path], tmp_path: Path) -> None:
    """Results of prefill steps, and so first tokens, come 2 ms late: without launch times, that is egress."""
    engine, _ = toy
    late = ToyEngine(traffic())
    late.first_ns = [at + 2_000_000 for at in late.first_ns]
    for row in late.rows:
        row["update_s"] += 0.002 * (row["prefill_seqs"] > 0)
    trace = read_trace(late.write(tmp_path))
    ways = overheads(trace, replay(trace), np.array([float(step_ns(features)) for features in engine.features]))
    assert ways.egress_ns == pytest.approx(EGRESS_NS + 2_000_000, abs=100_000)


def test_the_fitted_model_knows_the_engine(toy: tuple[ToyEngine, Path]) -> None:
    engine, folder = toy
    artifact, report = fit_trace(folder)
    model = CostModel(artifact)
    summed = sum(model.gpu_ns(features) for features in engine.features)
    assert summed == pytest.approx(sum(map(step_ns, engine.features)), rel=1e-4)
    assert max(row.median_abs for row in artifact.error if "in-sample" in row.judged_on) < 1e-4
    assert artifact.memory.num_gpu_blocks == 5000
    assert artifact.domain["decode_seqs"] == (1.0, float(max(features.decode_seqs for features in engine.features)))
    assert "in-sample" in artifact.provenance.note
    assert "cross-validated" in report


def test_the_command_writes_the_same_bytes_twice(toy: tuple[ToyEngine, Path], tmp_path: Path) -> None:
    folder = toy[1]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "profiler.fit_trace", f"trace={folder}", f"models={tmp_path / 'first'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    path = find("toy-gpu", "toy-7b", root=tmp_path / "first")
    assert str(path) in done.stdout
    Artifact.model_validate_json(path.read_text())
    assert main([f"trace={folder}", f"models={tmp_path / 'second'}"]) == 0
    first, second = (
        {file.relative_to(tmp_path / name): file.read_bytes() for file in (tmp_path / name).rglob("*.*")} for name in ("first", "second")
    )
    assert first == second
    assert {path.name for path in first} == {"bf16-kv_auto-tp1.json", "schema.json", "README.md"}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "trace is missing"),
        (["trace="], "expected trace=FOLDER"),
        (["trace=x", "trace=y"], "each once"),
        (["model=x"], "expected trace=FOLDER"),
        (["trace=nowhere"], "no such folder"),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert captured.err.count("\n") == 1


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "steps.csv.gz" in capsys.readouterr().out


def rewrite(name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        change(pd.read_csv(folder / name)).to_csv(folder / name, index=False)

    return apply


def remeta(**changed: object) -> Callable[[Path], None]:
    return lambda folder: (folder / "meta.json").write_text(json.dumps({**META, **changed})) and None


BROKEN = {
    "a file is missing": (lambda folder: (folder / "steps.csv.gz").unlink(), "steps.csv.gz is missing"),
    "no gzip": (lambda folder: (folder / "steps.csv.gz").write_bytes(b"oops"), "not readable as compressed CSV"),
    "cut gzip": (
        lambda folder: (folder / "steps.csv.gz").write_bytes((folder / "steps.csv.gz").read_bytes()[:500]),
        "not readable as compressed CSV",
    ),
    "empty table": (rewrite("steps.csv.gz", lambda t: t[:0]), "has no rows"),
    "a column is missing": (rewrite("steps.csv.gz", lambda t: t.drop(columns="update_s")), "column update_s is missing"),
    "no number": (
        rewrite("requests.csv.gz", lambda t: t.assign(ttft_s="soon")),
        "ttft_s is soon in row 0",
    ),
    "half a token": (rewrite("requests.csv.gz", lambda t: t.assign(prompt_tokens=1.5)), "prompt_tokens is 1.5 in row 0"),
    "the clock goes back": (rewrite("steps.csv.gz", lambda t: t.assign(update_s=t["update_s"].to_numpy()[::-1])), "goes back"),
    "preemption": (rewrite("steps.csv.gz", lambda t: t.assign(preempted=1)), "preemptions"),
    "another output": (
        rewrite("requests.csv.gz", lambda t: t.assign(output_tokens=t["output_tokens"] + 1)),
        "but the requests give",
    ),
    "another prompt": (
        rewrite("requests.csv.gz", lambda t: t.assign(prompt_tokens=t["prompt_tokens"] + 9)),
        "of the next requests have prompts",
    ),
    "no JSON": (lambda folder: (folder / "meta.json").write_text("{"), "not readable as JSON"),
    "another format": (remeta(format_version=2), "format_version"),
    "no engine": (remeta(engine={}), "engine.name"),
    "prefix caching": (remeta(prefix_caching=True), "prefix caching"),
    "speculation": (remeta(speculative={"method": "ngram"}), "speculation"),
    "too short": (lambda folder: ToyEngine([(0.0, 5, 5)]).write(folder), "too few steps"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_trace_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, says = BROKEN[name]
    folder = ToyEngine(traffic(20)).write(tmp_path / "trace")
    change(folder)
    with pytest.raises(UserError, match=says):
        fit_trace(folder)
    assert main([f"trace={folder}", f"models={tmp_path / 'models'}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "models").exists()
