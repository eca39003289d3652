"""Random engines with prefix caching, and requests that have much in common: heads, whole prompts, and answers of earlier turns."""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.engine import EngineConfig
from simulator.prefix.content import NOBODY
from validation.conformance.cases import Arrival, Case, Version, random_options, with_drafts

LONGEST_PROMPT = 200
"""Of a conversation that goes on."""


def random_prefix_case(seed: int, vllm_version: Version = "0.26") -> Case:
    """The same case for the same seed, whatever the version."""
    rng = np.random.default_rng([seed, 1])
    n = int(rng.integers(4, 48))
    tight = bool(rng.random() < 0.6)
    handled = np.cumsum(rng.exponential(rng.choice([0.3, 2.0, 8.0]), n)).astype(int).tolist()
    heads = rng.integers(1, rng.choice([3, 8] if tight else [3, 20, 60, 200]) + 1, int(rng.integers(1, 5))).tolist()
    tail, output = int(rng.choice([2, 8] if tight else [2, 20, 60])), int(rng.choice([3, 20] if tight else [3, 30, 80, 200]))
    # Where all answers are of one length, several end at once.
    shortest = output if rng.random() < 0.3 else 1
    ends_itself = rng.random(n) < rng.choice([0.0, 0.5, 1.0])
    arrivals: list[Arrival] = []
    for row in range(n):
        output_tokens = int(rng.integers(shortest, output + 1))
        max_tokens = output_tokens + int(ends_itself[row] * rng.integers(1, 100))
        prompt_tokens, segments, answer_id, follows = _prompt(rng, arrivals, heads, tail)
        priority = int(rng.integers(0, 3))
        arrivals.append(Arrival(handled[row], prompt_tokens, output_tokens, max_tokens, priority, segments, answer_id, follows))
    max_model_len = max(a.prompt_tokens + a.output_tokens for a in arrivals) + int(rng.choice([0, 0, 1, 30]))
    options = random_options(rng, max_model_len)
    blocks = -(-max_model_len // options["block_size"]) * rng.choice([1.0, 1.3, 2.0, 4.0, 12.0])
    options |= {"num_gpu_blocks": int(blocks) + 1, "enable_prefix_caching": True}
    if tight:
        options |= _to_the_last_block(rng, max_model_len)
    return Case(EngineConfig(**options, vllm_version=vllm_version), tuple(arrivals))


def speculative_prefix_case(seed: int, vllm_version: Version = "0.26") -> Case:
    """The same on an engine that speculates."""
    return with_drafts(random_prefix_case(seed, vllm_version), seed)


def _prompt(
    rng: np.random.Generator, earlier: list[Arrival], heads: list[int], tail: int
) -> tuple[int, tuple[tuple[int, int], ...], int, int | None]:
    """(prompt tokens, segments, content id of the answer, whom it follows) of the next request."""
    row = len(earlier)
    kind = rng.choice(["alone", "shared", "whole", "same", "turn"], p=[0.1, 0.3, 0.2, 0.15, 0.25])
    # Contents of a request's own, which later ones may repeat: its tail and its answer.
    own_id, answer_id = 1000 + 2 * row, 1001 + 2 * row
    own_tokens = int(rng.integers(1, tail + 1))
    whole = [place for place, arrival in enumerate(earlier) if arrival.answer_id != NOBODY and arrival.prompt_tokens < LONGEST_PROMPT]
    if kind == "alone":
        return own_tokens, (), NOBODY, None
    if kind in ("same", "turn") and whole:
        place = int(rng.choice(whole))
        before = earlier[place]
        if kind == "same":
            return before.prompt_tokens, before.segments, answer_id, before.follows
        more = ((before.answer_id, before.output_tokens), (own_id, own_tokens))
        return before.prompt_tokens + before.output_tokens + own_tokens, before.segments + more, answer_id, place
    segments = tuple((head, _some(rng, heads[head])) for head in rng.permutation(len(heads))[: int(rng.integers(1, 3))].tolist())
    prompt_tokens = sum(tokens for _, tokens in segments) + own_tokens
    return (
        (prompt_tokens, segments, NOBODY, None) if kind == "shared" else (prompt_tokens, (*segments, (own_id, own_tokens)), answer_id, None)
    )


def _some(rng: np.random.Generator, tokens: int) -> int:
    """All of them, or fewer."""
    return tokens if rng.random() < 0.8 else int(rng.integers(1, tokens + 1))


def _to_the_last_block(rng: np.random.Generator, max_model_len: int) -> dict[str, Any]:
    """Any token may take the last block, so requests lose theirs at every stage, and what they find again depends on every token."""
    block_size = int(rng.choice([1, 2, 3]))
    seats = int(rng.choice([4, 8, 16]))
    return {
        "max_num_seqs": seats,
        "max_num_batched_tokens": max(seats, int(rng.choice([8, 16, 64]))),
        "block_size": block_size,
        "num_gpu_blocks": int(-(-max_model_len // block_size) * rng.choice([1.0, 1.2, 1.5, 2.0])) + 1,
        "enable_chunked_prefill": True,
        "scheduler_reserve_full_isl": bool(rng.random() < 0.2),
        "watermark": 0.0,
    }
