"""The grid of an engine that speculates: steps that verify, and what else its drafter makes slower.

Small, for what does not speculate is in the profile of the same model without drafts. A verify step runs 1 + K tokens a sequence, so
its matrix products cross a tile of 128 rows at every 32nd sequence (K = 3), and full CUDA graphs, of 512 tokens at most, end at
128 sequences: beyond, a batch runs without a graph and in any size.
"""

from __future__ import annotations

from collections.abc import Iterator

from profiler.points import Point, ranks

BATCHES = (1, 4, 16, 32, 64, 96, 128, 160, 256, 512, 1024)
CONTEXTS = (32, 1024, 4096, 16384)
UNEVEN = (8, 16, 32, 64, 96, 128, 192)
"""Batches with contexts as uneven as traffic's."""
BETWEEN = (2, 8, 24, 34, 40, 48, 56, 66, 72, 80, 98, 112, 130, 145, 161, 177, 193, 209, 230, 290, 340, 390)
"""Between those of `BATCHES`, on both sides of the borders of tiles; without a graph, sizes as odd as traffic's."""
CHUNKS = (16, 64, 128, 192, 256, 384, 512, 521, 709, 1024, 2048, 4096, 7168, 8192)
SEVERAL = ((4, 64), (16, 64), (4, 256), (2, 1024))
STARTED = ((512, 8192), (2048, 8192))
MIXED_BATCHES, MIXED_CHUNKS = (4, 16, 48, 128, 256), (128, 400, 1200)
MIXED_CONTEXT = 2048
SAMPLED = (1, 2, 8, 16, 33, 34, 66, 67, 99, 132, 133, 264, 512)
"""The top-p kernel takes one position on each multiprocessor, 132, at a time: 33 sequences with three drafts."""


def verify_steps() -> Iterator[tuple[Point, int]]:
    """The points and their ranks, coarse to fine, of whatever size the engine."""
    yield from _decode()
    yield from _prefill()
    for batch, b in ranks(MIXED_BATCHES):
        for chunk, c in ranks(MIXED_CHUNKS):
            yield Point("mixed", batch, MIXED_CONTEXT, num_chunks=1, chunk=chunk), b + c
    for batch, b in ranks(SAMPLED):
        yield Point("sampling", batch, 32), b // 2


def _decode() -> Iterator[tuple[Point, int]]:
    for batch, b in ranks(BATCHES):
        for context, c in ranks(CONTEXTS):
            yield Point("decode", batch, context), b + c
    for batch, b in ranks(UNEVEN):
        yield Point("decode", batch, 8192, "spread"), b + 1
    for batch, b in ranks(BETWEEN):
        yield Point("decode", batch, 1024), b // 2 + 2


def _prefill() -> Iterator[tuple[Point, int]]:
    for chunk, c in ranks(CHUNKS):
        yield Point("prefill", num_chunks=1, chunk=chunk), c
    for (num_chunks, chunk), s in ranks(SEVERAL):
        yield Point("prefill", num_chunks=num_chunks, chunk=chunk), s + 1
    for (chunk, start), s in ranks(STARTED):
        yield Point("prefill", num_chunks=1, chunk=chunk, start=start), s + 1
