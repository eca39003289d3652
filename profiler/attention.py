"""Attention of a prompt's chunk: thread blocks run in rounds, and what the last round leaves idle is paid for.

A block computes 128 rows, each a token's query of one of the heads that share a key head, and a multiprocessor runs one at a time. A
chunk with fewer blocks than multiprocessors has its keys split, so that there are at least a tenth more blocks than it takes to fill them:
which then may need a second round. So a chunk of n tokens takes as long as one of n + idle(n) would, did it fill its rounds.
Source: FlashAttention-3, which vLLM 0.26 uses on Hopper (`hopper/flash_prepare_scheduler.cu`); what was measured follows it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from profiler.options import shape
from profiler.tables import Prior
from simulator.artifacts.attention import SPLIT_ABOVE

ROWS = 128
MULTIPROCESSORS = 132
"""Of an H100 and of an H200 (SXM)."""
MARGIN = SPLIT_ABOVE[0] / SPLIT_ABOVE[1]
SMALL_CHUNKS = (8, 16, 32, 64, 96, 128, 192, 256, 320, 384, 448, 512)
ROUNDS = 10
"""Rounds up to which the last one matters."""
PAIRS = "prefill_attention_tokens"
WEIGHT, CONTEXT_TOKENS = 1.0, 8192
"""Of a prior: one that is off by a step's time, with so many tokens before the chunk, weighs like a step that is off by as much."""


def heads_of(meta: Mapping[str, Any]) -> tuple[int, int]:
    """(heads, heads of keys and values) on one of the profiled model's GPUs."""
    config, num_gpus = meta.get("config") or shape(meta["model"]), meta["tensor_parallel_size"]
    heads = config["num_attention_heads"]
    return heads // num_gpus, max(config.get("num_key_value_heads", heads) // num_gpus, 1)


@dataclass(frozen=True)
class ChunkAttention:
    """Terms for the time that a token before a chunk takes beyond its share of a GPU without idle multiprocessors."""

    heads: int
    """Of one GPU."""
    kv_heads: int

    @property
    def chunks(self) -> tuple[int, ...]:
        """Sizes between which the idle tokens are taken for a straight line: on both sides of each round's end."""
        tiles = (MULTIPROCESSORS * full // self.kv_heads for full in range(1, ROUNDS + 1))
        ends = [tile * ROWS * self.kv_heads // self.heads for tile in tiles]
        return tuple(sorted({*(chunk for chunk in SMALL_CHUNKS if chunk < ends[0]), *(end + beyond for end in ends for beyond in (0, 1))}))

    @property
    def terms(self) -> tuple[str, ...]:
        """One for each of `chunks`."""
        ends: list[int | str] = ["", *self.chunks, 2 * self.chunks[-1]]
        shares = (f"prefill_tokens[{low}:{at}:{high}]" for low, at, high in zip(ends, self.chunks, ends[2:], strict=False))
        return tuple(f"prefill_started_tokens*{share}" for share in shares)

    def priors(self, times_ns: Sequence[float]) -> tuple[Prior, ...]:
        """What is expected of `terms`, given the times of about such steps, nanoseconds."""
        weights = [WEIGHT * CONTEXT_TOKENS / ns for ns in times_ns]
        by_chunk = zip(self.terms, self.chunks, weights, strict=True)
        return tuple(((term, weight), (PAIRS, -weight * self.idle_tokens(chunk))) for term, chunk, weight in by_chunk)

    def idle_tokens(self, chunk: int) -> float:
        """Tokens by which the chunk would be longer if it filled its rounds."""
        blocks = self.kv_heads * math.ceil(chunk * self.heads / self.kv_heads / ROWS)
        splits = max(math.ceil(MULTIPROCESSORS / (MARGIN * blocks)), 1)
        rounds = math.ceil(blocks * splits / MULTIPROCESSORS) / splits
        return max(rounds * self._tokens_per_round - chunk, 0.0)

    @property
    def _tokens_per_round(self) -> float:
        return ROWS * MULTIPROCESSORS / self.heads
