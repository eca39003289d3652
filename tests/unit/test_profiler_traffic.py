"""What a recording sends: several traces of one start, drawn before it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from profiler.client import Seen
from profiler.nvml import Nvml
from profiler.options import Recording, load
from profiler.replicas import gpus_of_replicas
from profiler.server import flags, require_server
from profiler.traffic import Traffic, traffic
from simulator.errors import UserError

TRACE = Path(__file__).resolve().parents[2] / "validation" / "traces" / "h100-r1-distill-qwen-7b-bf16-gamma"


def drawn(*arguments: str) -> list[Traffic]:
    return traffic(load(["model=tiny", "gpu=cpu", "opt.weights=float32", "duration_s=30", "out=traces", *arguments], Recording))


def test_traces_of_one_start_differ_in_what_they_say_and_in_nothing_else() -> None:
    light, burst, long, replayed = drawn(
        "max_model_len=4096",
        "workload.arrivals.rate=4",
        "workloads=[{name: light, rate: 2}, {name: burst, cv: 3, duration_s: 60, seed: 7},"
        " {name: long, workload: {lengths: {kind: custom, prompt: {kind: constant, value: 2000}, output: {kind: constant, value: 1600}}}},"
        f" {{name: replayed, workload: {{kind: replay, path: '{TRACE}'}}}}]",
    )
    assert [each.folder for each in (light, burst, long, replayed)] == [
        Path("traces") / name for name in ("light", "burst", "long", "replayed")
    ]
    assert light.workload["arrivals"] == {"kind": "preset", "name": "reasoning", "rate": 2.0, "modulation": None}
    assert (burst.workload["arrivals"]["rate"], burst.workload["arrivals"]["cv"]) == (4.0, 3.0)
    assert (burst.duration_s, burst.seed, light.duration_s, light.seed) == (60.0, 7, 30.0, 0)
    assert burst.requests.arrival_ns[-1] > 30e9 > light.requests.arrival_ns[-1]
    assert set(long.requests.prompt_tokens) == {2000}
    assert set(long.requests.output_tokens) == {1600}
    assert replayed.requests.arrival_ns[-1] < 30e9
    assert (replayed.requests.prompt_tokens + replayed.requests.output_tokens <= 4096).all()


def test_the_same_seed_sends_the_same_tokens() -> None:
    (one,), (same,), (other,) = drawn(), drawn(), drawn("seed=1")
    assert one.prompt(3) == same.prompt(3)
    assert one.prompt(3) != other.prompt(3)
    assert len(one.prompt(3)) == one.requests.prompt_tokens[3]
    assert one.prompt(3)[:8] != one.prompt(4)[:8]


def test_prompts_of_a_group_begin_alike() -> None:
    (plain,), (shared,) = drawn(), drawn("shared_prefixes={num_prefixes: 2, prefix_tokens: 48}")
    assert (shared.requests.prompt_tokens == plain.requests.prompt_tokens + 48).all()
    assert set(shared.prefix) == {0, 1}
    first, second = (np.flatnonzero(shared.prefix == group)[:2] for group in (0, 1))
    heads = {row: shared.prompt(int(row))[:48] for row in (*first, *second)}
    assert heads[first[0]] == heads[first[1]]
    assert heads[first[0]] != heads[second[0]]
    assert shared.prompt(int(first[0]))[48:56] != shared.prompt(int(first[1]))[48:56]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["workloads=[{name: a}, {name: a}]"], "two traces are called a"),
        (["workloads=[{name: a, workload: gsm9k}]"], "'gsm9k'"),
        (["workloads=[{name: a, workload: {kind: replay, path: t}, rate: 2}]"], "a has no arrivals"),
        (["workloads=[{name: a/b}]"], "workloads.0.name"),
        (["workloads=[{name: a, ratio: 2}]"], "workloads.0.ratio"),
        (["workload=barrier"], "num_requests"),
        (["num_replicas=0"], "num_replicas"),
    ],
)
def test_a_mistake_is_one_line_before_any_engine_starts(arguments: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        drawn(*arguments)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_every_replica_has_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def gpus(*arguments: str) -> list[str | None]:
        return gpus_of_replicas(load(["model=qwq-32b", *arguments], Recording))

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus() == [None]
    assert gpus("num_replicas=2") == ["0", "1"]
    assert gpus("num_replicas=2", "tensor_parallel_size=2") == ["0,1", "2,3"]
    assert gpus("num_replicas=2", "gpu=cpu") == [None, None]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert gpus("num_replicas=2") == ["4", "6"]


def test_a_row_says_what_the_client_saw() -> None:
    seen = Seen("7", prompt_tokens=5, output_tokens=5)
    seen.sent_s, seen.output_s, seen.received_tokens, seen.ended = 10.5, [11.0, 11.5, 12.5], 5, True
    row: dict[str, Any] = seen.row(start_s=10.0)
    assert (row["arrival_s"], row["ttft_s"], row["e2e_s"], row["output_tokens"]) == (0.5, 0.5, 2.0, 5)
    # Two tokens came with others: four gaps, of 0.5, 1, 0 and 0 s.
    assert (row["itl_p50_s"], row["itl_max_s"]) == (0.25, 1.0)


def test_options_become_words_of_vllms_command_line() -> None:
    options = {
        "max_model_len": 1024,
        "skip_tokenizer_init": True,
        "enable_prefix_caching": False,
        "speculative_config": {"method": "eagle3"},
    }
    assert flags({**options, "revision": None}) == [
        "--max-model-len", "1024", "--skip-tokenizer-init", "--no-enable-prefix-caching", "--speculative-config", '{"method": "eagle3"}',
    ]  # fmt: skip


def test_a_missing_part_of_the_server_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"client=http needs vLLM's server, and .*uvicorn.* is not installed here"):
        require_server()


def test_a_sensors_readings_become_least_median_and_greatest() -> None:
    assert Nvml.spread([{"power_w": 300.0}, {"power_w": 500.0}, {"power_w": 420.0}]) == {"power_w": [300.0, 420.0, 500.0]}
    assert Nvml.spread([]) == {}
