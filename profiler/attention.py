"""Attention of a prompt's chunk: thread blocks run in rounds, and what the last round leaves idle is paid for.

A block computes 128 rows of one head, and a multiprocessor runs one at a time (FlashAttention-3, as vLLM 0.26 uses it on Hopper): where the
blocks of a chunk do not fill the last round, it takes as long as a full one. A chunk that leaves more than half of the GPU idle has
its keys and values split among the idle ones. So a chunk of n tokens takes as long as one of n + idle(n) would, did it fill its rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from profiler.tables import Prior

ROWS = 128
MULTIPROCESSORS = 132
"""Of an H100 and of an H200 (SXM)."""
ROUNDS = 10
"""Rounds up to which the last one matters."""
PAIRS = "prefill_attention_tokens"
WEIGHT = 1.0
"""Of a prior: one off by a step's time, with `CONTEXT_TOKENS` before the chunk, weighs like a step that is off by as much."""
CONTEXT_TOKENS = 8192


def chunks(heads: int) -> tuple[int, ...]:
    """Chunk sizes between which the idle share of the rounds is a straight line: on both sides of each round's end."""
    ends = [MULTIPROCESSORS * full // heads for full in range(1, ROUNDS + 1)]
    split = [blocks for blocks in range(1, ends[0] + 2) if blocks == 1 or _rounds(blocks, heads) != _rounds(blocks - 1, heads)]
    tiles = sorted({1, *split, *(blocks - 1 for blocks in split if blocks > 1), *(end + after for end in ends for after in (0, 1))})
    return tuple(ROWS * blocks for blocks in tiles if blocks > 0)


def terms(sizes: Sequence[int]) -> tuple[str, ...]:
    """What a token of context takes longer beside a chunk of these `sizes` than its share of a full GPU's work."""
    ends: list[int | str] = ["", *sizes, 2 * sizes[-1]]
    return tuple(f"prefill_started_tokens*prefill_tokens[{low}:{at}:{high}]" for low, at, high in zip(ends, sizes, ends[2:], strict=False))


def priors(sizes: Sequence[int], heads: int, times_ns: Sequence[float]) -> tuple[Prior, ...]:
    """What is expected of `terms`, given the times of about such steps, nanoseconds."""
    rows = []
    for term, size, ns in zip(terms(sizes), sizes, times_ns, strict=True):
        weight = WEIGHT * CONTEXT_TOKENS / ns
        rows.append(((term, weight), (PAIRS, -weight * idle_tokens(size, heads))))
    return tuple(rows)


def idle_tokens(chunk: int, heads: int) -> float:
    """Tokens by which the chunk would be longer if it filled its rounds."""
    return _rounds(-(-chunk // ROWS), heads) * ROWS * MULTIPROCESSORS / heads - chunk


def _rounds(tiles: int, heads: int) -> float:
    blocks = tiles * heads
    return math.ceil(blocks / MULTIPROCESSORS) if 2 * blocks > MULTIPROCESSORS else 1 / (MULTIPROCESSORS // blocks)
