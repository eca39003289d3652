"""What to measure: batches to put before the engine, the coarse grid first, so that a run cut short is still useful."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from profiler.points import LIFE_STEPS, Kind, Limits, Point, ranks
from profiler.verify_grid import verify_steps

BATCHES = (1, 4, 16, 32, 64, 128, 256, 512, 768, 1024)
CONTEXTS = (32, 1024, 4096, 8192, 16384, 32768)
CHUNKS = (
    8, 16, 32, 64, 96, 128, 160, 192, 256, 272, 304, 320, 352, 384, 432, 464, 480, 496, 512,
    521, 541, 563, 584, 606, 631, 657, 683, 709, 738, 768, 799, 830, 864, 899, 935, 971, 998, 1024, 1080, 1136, 1204,
    1273, 1330, 1440, 1556, 1621, 1687, 1754, 1821, 1934, 2048, 2270, 2493, 2917, 3414, 4096, 5470, 6401, 7490, 8192,
)  # fmt: skip
"""Beyond the largest captured size a batch is not padded, and comes in any size: odd ones, for at round ones some kernels are a fifth
faster. From 256 to 512, all captured sizes that mixed steps leave out: kernels change there from one to the next."""
STARTED_CHUNKS, STARTS = (128, 512, 1024, 2048, 4096), (2048, 8192, 24576)
SEVERAL = ((2, 64), (4, 64), (8, 32), (2, 256), (4, 256), (16, 64), (2, 1024), (8, 256), (4, 1024), (32, 128), (2, 4096), (16, 512))
MIXED_BATCHES = (4, 16, 48, 128, 256, 480)
MIXED_CHUNKS = (128, 250, 400, 700, 1200, 2048, 4096)
MIXED_CONTEXT, OTHER_CONTEXTS = 2048, (512, 8192)
CROSSED_BATCHES, CROSSED_CHUNKS = (16, 128, 480), (128, 400, 1200)
"""Mixed steps measured at further contexts too, and with several chunks: what a prompt adds depends little on the batch beside it."""
SIXTEENTHS = 16
"""Matrix products of one size tell little of the next. So chunks are a sixteenth longer from batch to batch, and a sixteenth shorter in
further measurements: no total comes twice, but where contexts are compared."""
SAMPLED = (1, 2, 7, 8, 16, 64, 128, 132, 133, 264, 265, 396, 397, 528, 529, 1024)
"""Below 8 sequences the sampler sorts; from there on a kernel takes one on each multiprocessor, 132, at a time
(vLLM 0.26 `v1/sample/ops/topk_topp_sampler.py`, `topk_topp_triton.py`)."""
ENERGY_BATCHES = (1, 16, 64, 128, 256, 512)
# What prompts without end do to a GPU's clocks, and heads that sequences share to what they read (with opt=prefix_caching).
SUSTAINED_CHUNKS, SUSTAINED_BATCH, SUSTAINED_CONTEXT = (2048, 8192), 64, 2048
SHARING_BATCHES, HEADS, HEAD_TOKENS, SHARED_CONTEXTS = (16, 64, 128, 256), (1, 8), (1024, 4096), (1024, 4096)


def grid(limits: Limits, kinds: Sequence[Kind]) -> list[Point]:
    """All points of `kinds` that the engine can run, coarse to fine."""
    ranked: dict[Point, int] = {}
    plain = chain(_decode(limits), _prefill(limits), _mixed(), _sampling(), _energy(), _sustained(limits), _shared())
    for point, rank in verify_steps(limits.tokens_per_decode) if limits.tokens_per_decode > 1 else plain:
        if point.kind in kinds and point.possible(limits):
            ranked[point] = min(rank, ranked.get(point, rank))
    return _interleave(ranked)


def _decode(limits: Limits) -> Iterator[tuple[Point, int]]:
    longest = limits.max_model_len - LIFE_STEPS * limits.tokens_per_decode
    for batch, b in ranks(BATCHES):
        for context, c in ranks(sorted({min(context, longest) for context in CONTEXTS})):
            yield Point("decode", batch, context), b + c
            if batch > 1 and context >= 4096:
                yield Point("decode", batch, context, "spread"), b + c + 1
                yield Point("decode", batch, context, "traffic"), b + c
    # Every captured size once, full, and with padding and contexts as uneven as traffic's: equal ones end in the same instant.
    for size, s in ranks(sorted({size // limits.tokens_per_decode for size in limits.graph_sizes if size >= limits.tokens_per_decode})):
        yield Point("decode", size, 1024), s // 2 + 1
        yield Point("decode", max(size - 3, 1), 16384, "traffic"), s // 2 + 1


def _prefill(limits: Limits) -> Iterator[tuple[Point, int]]:
    for chunk, c in ranks(sorted({min(chunk, limits.max_num_scheduled_tokens) for chunk in CHUNKS})):
        yield Point("prefill", num_chunks=1, chunk=chunk), c // 2
    for chunk, c in ranks(STARTED_CHUNKS):
        for start, s in ranks([start for start in STARTS if start < limits.max_model_len]):
            yield Point("prefill", num_chunks=1, chunk=min(chunk, limits.max_num_scheduled_tokens), start=start), c + s
    for (num_chunks, chunk), s in ranks(SEVERAL):
        yield Point("prefill", num_chunks=num_chunks, chunk=chunk), s + 1


def _mixed() -> Iterator[tuple[Point, int]]:
    for batch, b in ranks(MIXED_BATCHES):
        for chunk, c in ranks(MIXED_CHUNKS):
            yield Point("mixed", batch, MIXED_CONTEXT, num_chunks=1, chunk=_longer(chunk, MIXED_BATCHES.index(batch))), b + c
    for batch, b in ranks(CROSSED_BATCHES):
        for chunk, c in ranks(CROSSED_CHUNKS):
            for context in OTHER_CONTEXTS:
                yield Point("mixed", batch, context, num_chunks=1, chunk=_longer(chunk, MIXED_BATCHES.index(batch))), b + c
            yield Point("mixed", batch, MIXED_CONTEXT, "spread", 1, _longer(chunk, -1), 4096), b + c + 1
            yield Point("mixed", batch, MIXED_CONTEXT, num_chunks=4, chunk=_longer(chunk, -2) // 4), b + c + 1


def _longer(chunk: int, sixteenths: int) -> int:
    return chunk * (SIXTEENTHS + sixteenths) // SIXTEENTHS


def _sampling() -> Iterator[tuple[Point, int]]:
    for batch in SAMPLED:
        # The first of all: they take no time, and no step of any kind is known without.
        yield Point("sampling", batch, 32), 0


def _energy() -> Iterator[tuple[Point, int]]:
    for batch, b in ranks(ENERGY_BATCHES):
        yield Point("energy", batch, 2048), b


def _sustained(limits: Limits) -> Iterator[tuple[Point, int]]:
    for chunk in SUSTAINED_CHUNKS:
        yield Point("sustained", num_chunks=1, chunk=min(chunk, limits.max_num_scheduled_tokens)), 2
    beside = min(SUSTAINED_CHUNKS[-1], limits.max_num_scheduled_tokens - SUSTAINED_BATCH)
    if beside > 0:
        yield Point("sustained", SUSTAINED_BATCH, SUSTAINED_CONTEXT, num_chunks=1, chunk=beside), 2


def _shared() -> Iterator[tuple[Point, int]]:
    for batch, b in ranks(SHARING_BATCHES):
        for heads in HEADS:
            for head_tokens in HEAD_TOKENS:
                for context in SHARED_CONTEXTS:
                    yield Point("shared", batch, context, "traffic", heads, head_tokens), b


def _interleave(ranked: dict[Point, int]) -> list[Point]:
    """By rank; within a rank the kinds take turns in proportion, so that a cut leaves none behind."""
    groups: dict[tuple[int, Kind], list[Point]] = {}
    for point, rank in sorted(ranked.items(), key=lambda item: item[0].name):
        groups.setdefault((rank, point.kind), []).append(point)
    order = {point: (rank, i / len(points)) for (rank, _), points in groups.items() for i, point in enumerate(points)}
    return sorted(order, key=lambda point: (*order[point], point.name))
