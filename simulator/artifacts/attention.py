"""How evenly the attention of decoding sequences fills a GPU.

Each head of keys of each sequence is one piece of work, a long one several. Pieces are given to the multiprocessors in the batch's order,
each to the first that is free: a long one that comes late keeps one busy while the others have nothing left to do. Contexts as unequal
as traffic's make a step up to a seventh longer that way.

Source: FlashAttention-3, which vLLM 0.26 uses on Hopper (`hopper/flash_prepare_scheduler.cu`: a sequence is split where it is longer than a
tenth above a multiprocessor's share); the order of the batch is that of vLLM's running list. What was measured follows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapreplace
from math import gcd
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

MOST_SPLITS = 32
"""`flash_attn_max_num_splits_for_cuda_graph` (vLLM 0.26 `config/attention.py`)."""
SPLIT_ABOVE = 11, 10
"""Of a multiprocessor's share, as a ratio of whole numbers: longer sequences are split."""
SHARES = 1024
"""An idle share is a whole number of these parts, so that one step and a stretch of steps agree to the nanosecond."""


class Attention(BaseModel):
    """What decides who computes what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    block_tokens: ClassVar[int] = 128
    """Tokens of a sequence that are read at a time."""

    kv_heads: int = Field(ge=1)
    """Heads of keys and values on one GPU."""
    multiprocessors: int = Field(ge=1)
    shared_read: float = Field(1.0, ge=0, le=1)
    """What a token costs of which several sequences hold the same block, each further time that it is read: shares of one that is read
    once. It may still lie in the GPU's cache. 1: not measured."""

    def saved_tokens(self, shared_tokens: int) -> int:
        """Of tokens that are read a further time, as many as it takes less time to read them."""
        return int(shared_tokens * (1.0 - self.shared_read))

    def idle_share(self, contexts: Sequence[int]) -> int:
        """What multiprocessors could have read while they waited for the last of them, in `SHARES`ths of the contexts' sum.

        `contexts`: tokens, in the batch's order.
        """
        block_tokens = self.block_tokens
        blocks = [-(-context // block_tokens) for context in contexts]
        total = sum(blocks)
        if not total:
            return 0
        # Multiprocessors that always become free together are one: what they read at the same time is equally long.
        together = gcd(self.multiprocessors, self.kv_heads)
        groups, heads = self.multiprocessors // together, self.kv_heads // together
        above, share = SPLIT_ABOVE
        longest = -(-above * total * heads // (share * groups))
        busy = [0] * groups
        for piece in _pieces(blocks, longest, heads):
            heapreplace(busy, busy[0] + piece)
        return SHARES * (max(busy) * groups - total * heads) // (total * heads)


def _pieces(blocks: list[int], longest: int, heads: int) -> list[int]:
    """Each head of each sequence, in parts where that is longer than `longest`."""
    if max(blocks) <= longest:
        return [length for length in blocks for _ in range(heads)] if heads > 1 else blocks
    pieces: list[int] = []
    for length in blocks:
        splits = 1 if length <= longest else min(-(-length // longest), MOST_SPLITS)
        pieces += [-(-length // splits)] * (splits * heads)
    return pieces
