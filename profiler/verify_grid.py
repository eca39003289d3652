"""The grid of an engine that speculates: steps that verify, and what else its drafter makes slower.

Small, for what does not speculate is in the profile of the same model without drafts. A verify step runs 1 + K tokens a sequence, so
its matrix products cross a tile of 128 rows at every 32nd sequence with K = 3, at every 25th or 26th with K = 4; full CUDA graphs, of 512
tokens at most, end where the fourth tile does: beyond, a batch runs without a graph and in any size.
"""

from __future__ import annotations

from collections.abc import Iterator

from profiler.attention import MULTIPROCESSORS
from profiler.points import Point, ranks

TILE, TILES = 128, 4
"""Rows of a tile, and how many of them the full graphs have."""
BATCHES = (1, 4, 16, 160, 256, 512, 1024)
"""Beside the last batch of each tile."""
CONTEXTS = (32, 1024, 4096, 16384)
UNEVEN = (8, 16, 32, 64, 96, 128, 192)
"""Batches with contexts as uneven as traffic's."""
BETWEEN = (2, 8, 24, 40, 48, 56, 72, 80, 112, 145, 161, 177, 193, 209, 230, 290, 340, 390)
"""Between those, beside the first batches of each further tile; without a graph, sizes as odd as traffic's."""
CHUNKS = (16, 64, 128, 192, 256, 384, 512, 521, 709, 1024, 2048, 4096, 7168, 8192)
SEVERAL = ((4, 64), (16, 64), (4, 256), (2, 1024))
STARTED = ((512, 8192), (2048, 8192))
MIXED_BATCHES, MIXED_CHUNKS = (4, 16, 48, 128, 256), (128, 400, 1200)
MIXED_CONTEXT = 2048
SAMPLED = (1, 2, 8, 16, 512)
"""Beside those around whole turns of the top-p kernel."""
SAMPLED_TURNS = (1, 2, 4)


def verify_steps(tokens_per_decode: int) -> Iterator[tuple[Point, int]]:
    """The points and their ranks, coarse to fine, of whatever size the engine; `tokens_per_decode` is 1 + K."""
    yield from _decode(tokens_per_decode)
    yield from _prefill()
    for batch, b in ranks(MIXED_BATCHES):
        for chunk, c in ranks(MIXED_CHUNKS):
            yield Point("mixed", batch, MIXED_CONTEXT, num_chunks=1, chunk=chunk), b + c
    for batch in _sampled(tokens_per_decode):
        yield Point("sampling", batch, 32), 0


def _decode(tokens_per_decode: int) -> Iterator[tuple[Point, int]]:
    last = [rows // tokens_per_decode for rows in range(TILE, TILES * TILE + 1, TILE)]
    for batch, b in ranks(sorted({*BATCHES, *last})):
        for context, c in ranks(CONTEXTS):
            yield Point("decode", batch, context), b + c
    for batch, b in ranks(UNEVEN):
        yield Point("decode", batch, 8192, "spread"), b + 1
    for batch, b in ranks(sorted({*BETWEEN, *(batch + 2 for batch in last)})):
        yield Point("decode", batch, 1024), b // 2 + 2


def _prefill() -> Iterator[tuple[Point, int]]:
    for chunk, c in ranks(CHUNKS):
        yield Point("prefill", num_chunks=1, chunk=chunk), c
    for (num_chunks, chunk), s in ranks(SEVERAL):
        yield Point("prefill", num_chunks=num_chunks, chunk=chunk), s + 1
    for (chunk, start), s in ranks(STARTED):
        yield Point("prefill", num_chunks=1, chunk=chunk, start=start), s + 1


def _sampled(tokens_per_decode: int) -> list[int]:
    """The top-p kernel takes one position on each multiprocessor at a time."""
    whole = [MULTIPROCESSORS * turns // tokens_per_decode for turns in SAMPLED_TURNS]
    more = [MULTIPROCESSORS * turns // tokens_per_decode for turns in (3, 8)]
    return sorted({*SAMPLED, *whole, *(batch + 1 for batch in whole), *more})
