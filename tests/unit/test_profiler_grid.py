"""The grid: what fits, what covers, and what comes first."""

from dataclasses import replace

import pytest

from profiler.grid import grid
from profiler.points import Limits, Point

CAPTURED = (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))
H100_7B = Limits(32768, 1024, 8192, 66910, 16, graph_sizes=CAPTURED)
KINDS = ("decode", "prefill", "mixed", "energy")


def test_every_point_fits_the_engine() -> None:
    small = Limits(16384, 1024, 8192, 2000, 16, graph_sizes=CAPTURED)
    for limits in (H100_7B, small):
        for point in grid(limits, KINDS):
            ends = [context + point.life_steps for context in point.contexts] + [point.start + point.chunk] * point.num_chunks
            assert max(ends) <= limits.max_model_len
            assert sum(-(-end // 16) for end in ends) <= limits.usable_blocks
            assert len(ends) <= limits.max_num_seqs
            assert point.batch + point.num_chunks * point.chunk <= limits.max_num_scheduled_tokens


def test_names_are_unique() -> None:
    names = [point.name for point in grid(H100_7B, KINDS)]
    assert len(set(names)) == len(names)


def test_every_captured_size_is_filled_and_padded() -> None:
    batches = {point.batch for point in grid(H100_7B, ["decode"])}
    assert set(CAPTURED) <= batches
    assert {size - 3 for size in CAPTURED if size > 8} <= batches
    assert any(batch > max(CAPTURED) for batch in batches)


def test_sizes_beyond_256_are_all_measured_and_beyond_the_graphs_hardly_any_twice() -> None:
    totals = {point.batch + point.num_chunks * point.chunk for point in grid(H100_7B, ["prefill", "mixed"])}
    assert {next(size for size in CAPTURED if size >= total) for total in totals if 256 < total <= 512} == {*range(272, 513, 16)}
    mixed = {replace(point, context=0) for point in grid(H100_7B, ["mixed"]) if point.batch + point.num_chunks * point.chunk > 512}
    assert len(mixed) - len({point.batch + point.num_chunks * point.chunk for point in mixed}) <= 1
    assert len({total for total in totals if total > 512}) > 60


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_a_cut_run_spans_what_the_whole_run_spans(share: float) -> None:
    whole = grid(H100_7B, KINDS)
    cut = whole[: int(share * len(whole))]
    assert {point.kind for point in cut} == set(KINDS)
    for kind in ("decode", "mixed", "prefill"):
        for feature in (lambda p: p.batch, lambda p: p.context, lambda p: p.num_chunks * p.chunk):
            values = [feature(point) for point in whole if point.kind == kind]
            early = [feature(point) for point in cut if point.kind == kind]
            assert (min(early), max(early)) == pytest.approx((min(values), max(values)), rel=1 / 7)


def test_drafts_take_their_share_of_the_budget() -> None:
    verify = Limits(32768, 1024, 2048, 66910, 16, tokens_per_decode=4, graph_sizes=CAPTURED)
    assert max(point.batch for point in grid(verify, ["decode"])) == 512
    assert 128 in {point.batch for point in grid(verify, ["decode"])}


@pytest.mark.parametrize("drafts", [1, 2, 3, 4, 7])
def test_a_speculative_grid_is_small_and_crosses_every_tile_of_the_full_graphs(drafts: int) -> None:
    per_decode = 1 + drafts
    verify = Limits(32768, 1024, 8192, 63000, 16, tokens_per_decode=per_decode, graph_sizes=CAPTURED)
    points = grid(verify, [*KINDS, "sampling"])
    assert len(points) <= 115
    assert {point.kind for point in points[:8]} == {"decode", "prefill", "mixed", "sampling"}
    batches = {point.batch for point in points if point.kind == "decode"}
    for tile in range(128, 512, 128):
        assert {tile // per_decode, tile // per_decode + 2} <= batches
    assert {512 // per_decode, 512 // per_decode + 2} <= batches  # the largest full graph, and a batch without one
    sampled = {point.batch * per_decode for point in points if point.kind == "sampling"}
    for turn in (132, 264, 528):  # positions that the top-p kernel takes in whole turns
        assert any(turn - per_decode < positions <= turn for positions in sampled)
        assert any(turn < positions <= turn + per_decode for positions in sampled)
    assert max(batches) == 1024


def test_verify_steps_whose_logits_have_no_room_are_left_out() -> None:
    bounded = Limits(32768, 1024, 8192, 63000, 16, tokens_per_decode=5, max_sampled_tokens=2900)
    assert max(point.batch for point in grid(bounded, [*KINDS, "sampling"])) == 512


@pytest.mark.parametrize(
    ("point", "contexts"),
    [
        (Point("decode", 3, 4096), [4096, 4096, 4096]),
        (Point("decode", 3, 4096, "one_long"), [4096, 256, 256]),
        (Point("decode", 3, 4096, "spread"), [4096, 1024, 256]),
    ],
)
def test_shapes_of_contexts(point: Point, contexts: list[int]) -> None:
    assert point.contexts == contexts


def test_only_the_kinds_asked_for() -> None:
    assert {point.kind for point in grid(H100_7B, ["prefill"])} == {"prefill"}
