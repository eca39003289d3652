"""Prompts that begin alike, samples of one prompt, and conversations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.reporting.summary import summary
from simulator.simulate import Result, Scenario, simulate
from simulator.workload import Sessions, Workload, generate, validate

LENGTHS = {
    "kind": "custom",
    "prompt": {"kind": "lognormal", "mu": 4.0, "sigma": 0.8},
    "output": {"kind": "lognormal", "mu": 5.0, "sigma": 0.9},
    "thinking": {"kind": "constant", "value": 0.7},
}
ARRIVALS = {"kind": "gamma", "rate": 5.0, "cv": 1.0}


def drawn(seed: int = 0, num_requests: int | None = 400, **spec: Any) -> Workload:
    return generate(
        validate({"kind": "open", "arrivals": ARRIVALS, "lengths": LENGTHS} | spec), seed, max_model_len=8192, num_requests=num_requests
    )


def heads(workload: Workload) -> list[list[tuple[int, int]]]:
    content = workload.requests.content
    assert content is not None
    bounds = zip(content.offsets[:-1].tolist(), content.offsets[1:].tolist(), strict=True)
    flat = list(zip(content.content_id.tolist(), content.tokens.tolist(), strict=True))
    return [flat[low:high] for low, high in bounds]


def serve(workload: Workload, enable_prefix_caching: bool = True, **options: Any) -> Result:
    engine = EngineConfig(max_model_len=8192, num_gpu_blocks=20_000, enable_prefix_caching=enable_prefix_caching, **options)
    return simulate(Scenario(workload, engine, CostModel.constant(1_000_000)))


def test_shared_prompts_come_before_the_prompts_and_change_nothing_else() -> None:
    plain, shared = drawn(), drawn(shared_prompts={"shared_prompt_tokens": 100, "num_shared_prompts": 3, "popularity": 1.0, "share": 0.8})
    has_one = np.array([len(row) for row in heads(shared)])
    assert (shared.requests.prompt_tokens - plain.requests.prompt_tokens == 100 * has_one).all()
    assert shared.requests.output_tokens.tolist() == plain.requests.output_tokens.tolist()
    used = np.bincount([row[0][0] for row in heads(shared) if row], minlength=3) / len(has_one)
    assert used == pytest.approx(0.8 * np.array([1, 1 / 2, 1 / 3]) / (11 / 6), abs=0.06)


def test_a_shared_prompt_is_computed_once() -> None:
    workload = drawn(shared_prompts={"shared_prompt_tokens": 160})
    result = serve(workload)
    assert (result.cached_tokens[1:] == 160).all()
    assert result.cached_tokens[0] == 0
    figures = summary(result)
    assert figures["prefix_cache_hits"] == 160 * 399
    assert figures["prefix_cache_hit_rate"] == pytest.approx(160 * 399 / workload.requests.prompt_tokens.sum())
    assert "prefix_cache_hits" not in summary(serve(workload, enable_prefix_caching=False))


def test_samples_of_one_prompt_are_sent_at_once_and_vary_as_published() -> None:
    lengths = LENGTHS | {"max_tokens": 1 << 30, "thinking": None}
    spec = validate({"kind": "open", "arrivals": ARRIVALS, "lengths": lengths, "samples_per_prompt": 8})
    requests = generate(spec, 0, max_model_len=1 << 30, num_requests=16_000).requests
    groups = np.log(requests.output_tokens).reshape(-1, 8)
    between, within = 0.62 / 0.78 * 0.81, 0.16 / 0.78 * 0.81
    assert groups.var(1, ddof=1).mean() == pytest.approx(within, rel=0.05)
    assert groups.mean(1).var(ddof=1) == pytest.approx(between + within / 8, rel=0.08)
    assert np.ptp(requests.arrival_ns.reshape(-1, 8), axis=1).max() == 0
    assert np.ptp(requests.prompt_tokens.reshape(-1, 8), axis=1).max() == 0


def test_all_samples_but_the_first_find_the_prompt() -> None:
    result = serve(drawn(samples_per_prompt=4))
    full_blocks = (result.requests.prompt_tokens - 1) // 16 * 16
    first = np.arange(400) % 4 == 0
    assert (result.cached_tokens[first] == 0).all()
    # Of one step: what the first is scheduled to compute, the others find already.
    assert (result.cached_tokens[~first] == full_blocks[~first]).all()


def conversation(thinking: str, **spec: Any) -> Workload:
    return drawn(kind="sessions", thinking=thinking, mean_turns=4, think_s=0.5, **spec)


@pytest.mark.parametrize("thinking", ["kept", "stripped", "kept_in_tool_loops"])
def test_a_turn_is_sent_after_the_answer_and_a_think_time(thinking: str) -> None:
    workload = conversation(thinking, tool_calls_per_turn=1.0)
    result = serve(workload)
    assert isinstance(workload.loop, Sessions)
    later = np.flatnonzero(workload.loop.follows >= 0)
    assert len(later) > 200
    before = workload.loop.follows[later]
    assert (
        result.sent_ns[later] == np.maximum(result.finish_ns[before] + workload.loop.think_ns[later], result.finish_ns[before] + 1)
    ).all()
    assert (result.finish_ns >= 0).all()


def lost(workload: Workload) -> tuple[np.ndarray, np.ndarray]:
    """Of each later request: computed tokens of the one before that it does not find, with memory for all; and whether a tool sent it."""
    result = serve(workload)
    assert isinstance(workload.loop, Sessions)
    later = np.flatnonzero(workload.loop.follows >= 0)
    before = workload.loop.follows[later]
    computed = (result.requests.prompt_tokens + result.requests.output_tokens - 1)[before] // 16 * 16
    return computed - result.cached_tokens[later], workload.loop.think_ns[later] == 1_000_000_000


def test_what_is_found_depends_on_what_is_kept_of_thinking() -> None:
    workload = conversation("kept", tool_calls_per_turn=2.0)
    missed, by_tool = lost(workload)
    assert (missed == 0).all()
    assert 100 < by_tool.sum() < len(by_tool) - 50
    missed, by_tool = lost(conversation("kept_in_tool_loops", tool_calls_per_turn=2.0))
    assert (missed[by_tool] == 0).all()
    assert (missed[~by_tool] > 0).mean() > 0.9
    missed, by_tool = lost(conversation("stripped", tool_calls_per_turn=2.0))
    assert (missed[by_tool] > 0).mean() > 0.9
    assert (missed[~by_tool] > 0).mean() > 0.9


def test_stripped_thinking_breaks_the_match_at_the_first_answer() -> None:
    workload = conversation("stripped")
    result = serve(workload)
    assert isinstance(workload.loop, Sessions)
    later = np.flatnonzero(workload.loop.follows >= 0)
    before = workload.loop.follows[later]
    assert (result.cached_tokens[later] // 16 == result.requests.prompt_tokens[before] // 16).all()


def test_a_shorter_run_is_the_beginning_of_a_longer_one() -> None:
    short, long = conversation("kept", num_requests=50), conversation("kept", num_requests=300)
    for name in ("arrival_ns", "prompt_tokens", "output_tokens", "visible_token"):
        assert getattr(short.requests, name).tolist() == getattr(long.requests, name)[:50].tolist()
    assert heads(short) == heads(long)[:50]


def test_a_conversation_ends_where_the_context_does() -> None:
    workload = generate(
        validate({"kind": "sessions", "arrivals": ARRIVALS, "lengths": LENGTHS, "mean_turns": 20.0, "max_turns": 50, "thinking": "kept"}),
        0,
        max_model_len=700,
        num_requests=300,
    )
    requests = workload.requests
    assert (requests.prompt_tokens < 700).all()
    assert (requests.prompt_tokens + requests.output_tokens <= 700).all()
    assert requests.truncated.any()
