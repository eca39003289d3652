"""The pool of KV blocks of one engine, by count."""

from __future__ import annotations

from simulator.errors import InvariantError


class BlockPool:
    """Counts free blocks. Without prefix caching no rule of the engine depends on which block a request holds.

    Source: vLLM 0.26 `v1/core/block_pool.py`; the null block is not part of `usable_blocks`.
    """

    __slots__ = ("free_blocks", "usable_blocks")

    def __init__(self, usable_blocks: int) -> None:
        self.usable_blocks = usable_blocks
        self.free_blocks = usable_blocks

    @property
    def held_blocks(self) -> int:
        """Blocks that requests hold."""
        return self.usable_blocks - self.free_blocks

    def take(self, blocks: int) -> None:
        """Hands out `blocks` blocks; the caller has checked that they are free."""
        self.free_blocks -= blocks
        if self.free_blocks < 0:
            raise InvariantError(f"{-self.free_blocks} blocks more than the pool has were taken")

    def give_back(self, blocks: int) -> None:
        """Takes back `blocks` blocks."""
        self.free_blocks += blocks
        if self.free_blocks > self.usable_blocks:
            raise InvariantError(f"{self.free_blocks - self.usable_blocks} blocks more than the pool has were given back")


def blocks_for(tokens: int, block_size: int) -> int:
    """Blocks that hold `tokens` tokens."""
    return -(-tokens // block_size)
