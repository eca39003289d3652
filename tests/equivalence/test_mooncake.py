"""Prefix-cache hits of the Mooncake conversation trace: those of a plain replay, with infinite and with finite memory."""

from __future__ import annotations

import gzip
import json
from functools import cache
from typing import Any

import pytest

from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.simulate import Scenario, simulate
from simulator.workload import OpenLoop, Workload, read_trace
from simulator.workload.traces import SHIPPED
from tests.reference.plain_cache import PlainCache

TRACE_BLOCK = 512
INFINITE = 400_000
"""More blocks of 512 tokens than the whole trace fills."""


@cache
def records() -> list[dict[str, Any]]:
    with gzip.open(SHIPPED["mooncake_conversation"], "rt") as file:
        return [json.loads(line) for line in file]


def plain_hits(num_requests: int, num_blocks: int, block_size: int) -> list[int]:
    """Cached tokens of each request, served one after another."""
    cache = PlainCache(num_blocks, block_size, enable_caching=True)
    hits = []
    for row, record in enumerate(records()[:num_requests]):
        tokens = [(i, part) for i in record["hash_ids"] for part in range(0, TRACE_BLOCK, block_size)]
        # The last token of an answer is never computed.
        computed = record["input_length"] + record["output_length"] - 1
        hashes: list[int] = []
        for place, content in enumerate(tokens[: record["input_length"] // block_size]):
            parent = hashes[-1] if place else None
            hashes.append(cache.chains.setdefault((parent, (content,)), len(cache.chains)))
        for place in range(len(hashes), computed // block_size):
            hashes.append(cache.chains.setdefault((hashes[-1] if hashes else None, (row, place)), len(cache.chains)))
        found = cache.get_computed_blocks(hashes, record["input_length"])
        cache.touch(found)
        blocks = found + cache.get_new_blocks(-(-computed // block_size) - len(found))
        cache.cache_full_blocks(blocks, hashes, computed)
        cache.free_blocks(blocks[::-1])
        hits.append(len(found) * block_size)
    return hits


def simulated_hits(num_requests: int, num_blocks: int, block_size: int) -> list[int]:
    requests = read_trace("mooncake_conversation").requests.take(slice(num_requests))
    engine = EngineConfig(
        max_model_len=int((requests.prompt_tokens + requests.output_tokens).max()),
        max_num_seqs=1,
        block_size=block_size,
        num_gpu_blocks=num_blocks + 1,
        enable_prefix_caching=True,
    )
    hits: list[int] = simulate(Scenario(Workload(requests, OpenLoop()), engine, CostModel.constant(1))).cached_tokens.tolist()
    return hits


@pytest.mark.parametrize(("num_blocks", "share"), [(INFINITE, 0.3734), (6_000, 0.1429)])
def test_hits_of_the_whole_trace(num_blocks: int, share: float) -> None:
    hits = simulated_hits(len(records()), num_blocks, TRACE_BLOCK)
    assert hits == plain_hits(len(records()), num_blocks, TRACE_BLOCK)
    assert sum(hits) / sum(record["input_length"] for record in records()) == pytest.approx(share, abs=0.0001)


@pytest.mark.parametrize("num_blocks", [1 << 20, 20_000])
def test_hits_with_blocks_of_16_tokens(num_blocks: int) -> None:
    hits = simulated_hits(600, num_blocks, 16)
    assert hits == plain_hits(600, num_blocks, 16)
    assert sum(hits) > 300_000


def test_the_trace_s_own_blocks_are_found_as_often_as_is_published() -> None:
    """36.6 % of them, counted as they are, with infinite memory."""
    seen: set[int] = set()
    found = 0
    for record in records():
        head = [i in seen for i in record["hash_ids"]]
        found += head.index(False) if False in head else len(head)
        seen.update(record["hash_ids"])
    assert found / sum(len(record["hash_ids"]) for record in records()) == pytest.approx(0.366, abs=0.0005)
