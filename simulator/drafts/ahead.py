"""A stretch of steps in which the same sequences verify all their drafts: looked ahead at once, to be taken as far as time goes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


class Ahead(NamedTuple):
    """The steps that would be planned when results come in, as long as none of them could be another.

    Drafts are accepted by request and position, so what every step to come emits is known as soon as its beginning is.
    """

    paths: list[list[int]]
    """Of each running sequence, in their order: tokens emitted once 1, 2, … results are in."""
    context_sum: Int64
    """int64[m]: of the steps planned after each result."""
    context_max: Int64
    blocks: Int64
    """int64[m]: blocks that those steps take, together."""
    held: Int64
    """int64[sequences, m]: what each then holds."""

    @classmethod
    def look(
        cls, paths: list[list[int]], prompts: list[int], held: list[int], in_flight: int, lookahead: int, max_len: int, block_size: int
    ) -> Ahead:
        """From the paths of sequences with these prompts and blocks; `in_flight` tokens of each are computed ahead of its results."""
        emitted = np.array(paths, np.int64)
        context = emitted + (np.array(prompts, np.int64)[:, None] + (in_flight - 1))
        needed = -(-np.minimum(context + lookahead, max_len) // block_size)
        holding = np.maximum(np.array(held, np.int64)[:, None], needed)
        return cls(paths, context.sum(axis=0), context.max(axis=0), holding.sum(axis=0) - sum(held), holding)

    def within(self, free_blocks: int) -> int:
        """Steps that can be planned with so many free blocks."""
        return int(np.searchsorted(self.blocks, free_blocks, side="right"))
