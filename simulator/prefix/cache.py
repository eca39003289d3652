"""The pool of KV blocks of one engine with prefix caching: what a block holds is remembered until the block is taken for something else."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from simulator.engine import EngineConfig
from simulator.errors import InvariantError
from simulator.kv import BlockPool, Hit
from simulator.prefix.content import Content, private
from simulator.step.sequence import Sequence


class Block:
    """A full block with a hash."""

    __slots__ = ("holders", "key")

    def __init__(self, key: int) -> None:
        self.key = key
        self.holders = 1


class PrefixCache(BlockPool):
    """Blocks by count, as in `BlockPool`, and by content where content can come up again.

    vLLM's free queue always holds the blocks without a hash first, then those with one, least recently freed first: freed blocks of
    the former kind go to the front, of the latter to the back. The former are alike, so a number stands for them. Blocks are taken
    from the front, so which ones a count of them took can be found out later, before the queue is next read or added to (`_settle`).

    Blocks that nobody else can ever look up are a number, too: while their request runs, and in the queue once it is finished.

    Source: vLLM 0.26 `v1/core/block_pool.py`, `v1/core/single_type_kv_cache_manager.py` `FullAttentionManager`.
    """

    __slots__ = ("_cached", "_drops_last", "_held", "_queue", "_queued", "_size", "_twins")

    def __init__(self, usable_blocks: int, block_size: int, *, drops_last: bool = False) -> None:
        """`drops_last`: the last block found is computed again, since EAGLE drafts from what the model makes of its tokens."""
        super().__init__(usable_blocks)
        self._drops_last = drops_last
        self._size = block_size
        self._cached: dict[int, Block] = {}
        """By key the block that a lookup finds: the first of its content."""
        self._twins: dict[int, list[Block]] = {}
        """Further blocks of the same content: vLLM never merges two that were computed at the same time."""
        self._held: dict[Sequence, list[Block]] = {}
        """The first blocks of each running sequence, as far as they are known by key."""
        self._queue: OrderedDict[object, int] = OrderedDict()
        """Free blocks with a hash, the next to be taken first; a finished request's own ones are one entry: their number."""
        self._queued = 0

    @classmethod
    def after(cls, pool: BlockPool, holding: Iterable[Sequence], engine: EngineConfig) -> PrefixCache:
        """Takes over from a pool that only counted while there was nothing that could have been found.

        No lookup ever finds what was freed until now, and all that is freed with a hash from now on lies behind it in the queue:
        so many blocks are all that has to be known of it.
        """
        cache = cls(pool.usable_blocks, engine.block_size, drops_last=engine.speculative is not None and engine.speculative.uses_eagle)
        cache.free_blocks = pool.free_blocks
        cache._held = {sequence: [] for sequence in (*holding, *pool.sending)}
        cache.sending = pool.sending
        if pool.free_blocks:
            cache._queue[object()] = cache._queued = pool.free_blocks
        return cache

    def lookup(self, sequence: Sequence) -> Hit:
        """The longest run of full blocks from the start that are there, the last token always left to compute."""
        self._settle()
        content = _content(sequence)
        size = self._size
        limit = (sequence.num_tokens - 1) // size
        # What a request has alone, it can only find after its own preemption.
        found, held = [], 0
        for key in content.keys(0, limit if sequence.preemptions else min(limit, content.shared_tokens // size), size):
            block = self._cached.get(key)
            if block is None:
                break
            found.append(block)
            held += block.holders > 0
        if found and self._drops_last:
            held -= found.pop().holders > 0
        return Hit(found, held)

    def share(self, sequence: Sequence, hit: Hit) -> None:
        """The sequence is admitted, and holds the blocks of its lookup, which must be the last one."""
        for block in hit.blocks:
            if block.holders == 0:
                del self._queue[block]
                self._queued -= 1
                self.free_blocks -= 1
            else:
                self.shared_blocks += 1
            block.holders += 1
        self._held[sequence] = list(hit.blocks)

    def keep(self, sequence: Sequence) -> None:
        """A piece of a prompt was scheduled: from now on, its full blocks can be found, though they are still to be computed."""
        content, blocks = _content(sequence), self._held[sequence]
        upto = min(sequence.hashed_tokens, content.shared_tokens) // self._size
        blocks.extend(map(self._insert, content.keys(len(blocks), upto, self._size)))

    def release(self, sequence: Sequence) -> None:
        """A preempted sequence loses its blocks; it may find those with a hash again."""
        self._give_back(sequence, sequence.hashed_tokens // self._size)

    def _let_go(self, sequence: Sequence) -> None:
        """A sequence that is over gives its blocks back; what was its own, nobody looks up any more."""
        self._give_back(sequence, min(sequence.hashed_tokens, _content(sequence).shared_tokens) // self._size)

    def _give_back(self, sequence: Sequence, findable: int) -> None:
        self._settle()
        blocks = self._held.pop(sequence)
        blocks.extend(map(self._insert, _content(sequence).keys(len(blocks), findable, self._size)))
        forgotten = sequence.hashed_tokens // self._size - len(blocks)
        freed = sequence.blocks - len(blocks)
        # The tail goes first, so that it is taken first.
        if forgotten > 0:
            self._queue[object()] = forgotten
            self._queued += forgotten
        for block in reversed(blocks):
            block.holders -= 1
            if block.holders == 0:
                self._queue[block] = 1
                self._queued += 1
                freed += 1
            else:
                self.shared_blocks -= 1
        self.give_back(freed)

    def _insert(self, key: int) -> Block:
        block = Block(key)
        if self._cached.setdefault(key, block) is not block:
            self._twins.setdefault(key, []).append(block)
        return block

    def _settle(self) -> None:
        """Finds out which blocks were taken since the last time: those without a hash, then from the front of the queue."""
        while self._queued > self.free_blocks:
            entry, count = self._queue.popitem(last=False)
            taken = min(count, self._queued - self.free_blocks)
            self._queued -= taken
            if taken < count:
                self._queue[entry] = count - taken
                self._queue.move_to_end(entry, last=False)
            if isinstance(entry, Block):
                self._forget(entry)

    def _forget(self, block: Block) -> None:
        key = block.key
        twins = self._twins.get(key)
        if self._cached[key] is not block:
            assert twins is not None
            twins.remove(block)
        elif twins:
            self._cached[key] = twins.pop(0)
        else:
            del self._cached[key]
        if twins is not None and not twins:
            del self._twins[key]

    def check(self, held: Iterable[tuple[Sequence, int]]) -> None:
        """As in `BlockPool`; a block that several sequences hold counts once, and a cached block in the queue is free."""
        self._settle()
        total, distinct = 0, set()
        for sequence, blocks in (*held, *self.sending.items()):
            known = self._held[sequence]
            total += blocks - len(known)
            distinct.update(known)
        if total + len(distinct) != self.held_blocks:
            raise InvariantError(f"requests hold {total + len(distinct)} blocks, the pool says {self.held_blocks}")
        if sum(self._queue.values()) != self._queued or any(entry in self._queue for entry in distinct):
            raise InvariantError("the queue of free blocks is not what was freed")


def _content(sequence: Sequence) -> Content:
    if sequence.content is None:
        sequence.content = private(sequence.row)
    return sequence.content
