"""The pool of KV blocks of one engine, by count."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from simulator.errors import InvariantError
from simulator.step.sequence import Sequence


class Hit(NamedTuple):
    """What a lookup found of a sequence."""

    blocks: list[Any]
    """From the first on."""
    held: int
    """So many of them other sequences hold; the others are free, and have to be taken."""


NO_HIT = Hit([], 0)


class BlockPool:
    """Counts free blocks. Without prefix caching no rule of the engine depends on which block a request holds.

    Source: vLLM 0.26 `v1/core/block_pool.py`; the null block is not part of `usable_blocks`.
    """

    __slots__ = ("free_blocks", "sending", "shared_blocks", "usable_blocks")

    def __init__(self, usable_blocks: int) -> None:
        self.usable_blocks = usable_blocks
        self.free_blocks = usable_blocks
        self.shared_blocks = 0
        """Further holders of blocks, beyond the first of each."""
        self.sending: dict[Sequence, int] = {}
        """Finished sequences that another engine goes on with, and the blocks that each holds until they are sent."""

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

    # -- what differs with prefix caching: simulator/prefix/cache.py ------------------------------------------------

    def lookup(self, sequence: Sequence) -> Hit:  # noqa: ARG002 - nothing is remembered here
        """What the pool still holds of a waiting sequence."""
        return NO_HIT

    def share(self, sequence: Sequence, hit: Hit) -> None:
        """The sequence is admitted, and holds what was found of it."""

    def keep(self, sequence: Sequence) -> None:
        """A piece of the sequence's prompt was scheduled."""

    def release(self, sequence: Sequence) -> None:
        """The sequence was preempted: takes back its blocks."""
        self.give_back(sequence.blocks)

    def _let_go(self, sequence: Sequence) -> None:
        """Nobody needs the blocks of the sequence any more."""
        self.give_back(sequence.blocks)

    # ----------------------------------------------------------------------------------------------------------------

    def retire(self, sequence: Sequence) -> None:
        """The sequence is finished, or its client left: takes back its blocks, unless they are to be sent first.

        Source: vLLM 0.26 `v1/core/sched/scheduler.py` `_free_request()`, whose connector may delay that.
        """
        if sequence.is_sent_on:
            self.sending[sequence] = sequence.blocks
        else:
            self._let_go(sequence)

    def sent(self, sequence: Sequence) -> None:
        """The blocks of a finished sequence have been sent (`_update_from_kv_xfer_finished()`)."""
        if sequence not in self.sending:
            return  # it was preempted while its last step ran
        sequence.blocks = self.sending.pop(sequence)
        self._let_go(sequence)
        sequence.blocks = 0

    def check(self, held: Iterable[tuple[Sequence, int]]) -> None:
        """Law: free + held blocks = usable, with the blocks that each running sequence holds, and those that are being sent.

        Raises:
            InvariantError: it does not hold.
        """
        total = sum(blocks for _, blocks in held) + sum(self.sending.values())
        if total != self.held_blocks:
            raise InvariantError(f"requests hold {total} blocks, the pool says {self.held_blocks}")


def blocks_for(tokens: int, block_size: int) -> int:
    """Blocks that hold `tokens` tokens."""
    return -(-tokens // block_size)
