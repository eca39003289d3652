"""vLLM's pool of KV blocks with prefix caching, every block and every token spelled out. The oracle of `simulator.prefix.cache`.

Written from vLLM 0.26 `v1/core/` (`block_pool.py`, `kv_cache_manager.py`, `single_type_kv_cache_manager.py`), with their names.
It shares no code with the simulator, only the table of requests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence

from simulator.request import RequestTable
from tests.reference.plain_request import Request


class PlainCache:
    """Blocks are numbers; a block's hash is a number, too: one for each chain of tokens, from the first on, that was ever hashed."""

    def __init__(self, num_blocks: int, block_size: int, *, enable_caching: bool, use_eagle: bool = False) -> None:
        self.block_size = block_size
        self.enable_caching = enable_caching
        self.use_eagle = use_eagle
        self.ref_cnt = [0] * num_blocks
        self.block_hash: list[int | None] = [None] * num_blocks
        self.free_block_queue = OrderedDict.fromkeys(range(num_blocks))
        self.cached_block_hash_to_block: dict[int, list[int]] = {}
        self.chains: dict[tuple[int | None, tuple[Hashable, ...]], int] = {}

    def extend_hashes(self, block_hashes: list[int], tokens: Sequence[Hashable]) -> None:
        """Hashes of the full blocks of `tokens` that are not in `block_hashes` yet."""
        while self.enable_caching and (len(block_hashes) + 1) * self.block_size <= len(tokens):
            start = len(block_hashes) * self.block_size
            chain = (block_hashes[-1] if block_hashes else None, tuple(tokens[start : start + self.block_size]))
            block_hashes.append(self.chains.setdefault(chain, len(self.chains)))

    def get_computed_blocks(self, block_hashes: Sequence[int], num_tokens: int) -> list[int]:
        computed_blocks: list[int] = []
        for block_hash in block_hashes[: (num_tokens - 1) // self.block_size]:
            blocks = self.cached_block_hash_to_block.get(block_hash)
            if not blocks:
                break
            computed_blocks.append(blocks[0])
        return computed_blocks[:-1] if self.use_eagle else computed_blocks

    def num_evictable(self, blocks: Sequence[int]) -> int:
        return sum(self.ref_cnt[block] == 0 for block in blocks)

    def touch(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            if self.ref_cnt[block] == 0:
                del self.free_block_queue[block]
            self.ref_cnt[block] += 1

    def get_new_blocks(self, num_blocks: int) -> list[int]:
        new_blocks = [self.free_block_queue.popitem(last=False)[0] for _ in range(num_blocks)]
        for block in new_blocks:
            block_hash, self.block_hash[block] = self.block_hash[block], None
            if block_hash is not None:
                self.cached_block_hash_to_block[block_hash].remove(block)
            self.ref_cnt[block] += 1
        return new_blocks

    def cache_full_blocks(self, blocks: Sequence[int], block_hashes: Sequence[int], num_tokens: int) -> None:
        """Gives those blocks a hash that `num_tokens` tokens fill, and that have none yet."""
        for block, block_hash in zip(blocks[: num_tokens // self.block_size], block_hashes, strict=False):
            if self.enable_caching and self.block_hash[block] is None:
                self.block_hash[block] = block_hash
                self.cached_block_hash_to_block.setdefault(block_hash, []).append(block)

    def free_blocks(self, ordered_blocks: Sequence[int]) -> None:
        with_hash, without_hash = [], []
        for block in ordered_blocks:
            self.ref_cnt[block] -= 1
            if self.ref_cnt[block] == 0:
                (without_hash if self.block_hash[block] is None else with_hash).append(block)
        self.free_block_queue.update(dict.fromkeys(with_hash))
        for block in without_hash[::-1]:
            self.free_block_queue[block] = None
            self.free_block_queue.move_to_end(block, last=False)


def spell_out(requests: Iterable[Request], table: RequestTable, cache: PlainCache) -> None:
    """Gives every token of every prompt something that is equal for equal tokens, and full blocks their hashes."""
    for request in requests:
        row, content = request.row, table.content
        request.answer = ("answer of", row)
        if content is not None:
            segments = slice(content.offsets[row], content.offsets[row + 1])
            for content_id, tokens in zip(content.content_id[segments], content.tokens[segments], strict=True):
                request.all_tokens += [(int(content_id), place) for place in range(tokens)]
            if content.answer_id[row] >= 0:
                request.answer = int(content.answer_id[row])
        lone = range(request.prompt_tokens - len(request.all_tokens))
        request.all_tokens += [("prompt of", row, place) for place in lone]
        cache.extend_hashes(request.block_hashes, request.all_tokens)
