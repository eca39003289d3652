"""What multiprocessors wait for in attention: against all pieces one by one, and from a profile's points."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.grid import grid
from profiler.idle import attention_of, idle_tokens, in_step_seqs
from profiler.points import Limits, Point
from simulator.artifacts.attention import SHARES, Attention
from simulator.features import StepFeatures
from simulator.step.idle import IdleShare
from simulator.step.sequence import Sequence
from simulator.step.stepplan import StepPlan
from tests.reference.plain_attention import idle_share
from tests.support.cases import FineAttention, cost_model, random_case

H100 = {heads: Attention(kv_heads=heads, multiprocessors=132) for heads in (1, 2, 4, 8)}
LIMITS = Limits(32768, 1024, 8192, 66910, 16, graph_sizes=(1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)))

contexts = st.lists(st.integers(1, 40_000), max_size=80) | st.lists(st.sampled_from([1, 128, 129, 5_000, 131_072]), max_size=40)


@pytest.mark.parametrize("heads", H100)
@given(contexts=contexts)
@settings(max_examples=60, deadline=None)
def test_pieces_in_groups_are_pieces_one_by_one(heads: int, contexts: list[int]) -> None:
    share = H100[heads].idle_share(contexts)
    assert share == idle_share(H100[heads], contexts)
    assert share >= 0


@given(st.integers(1, 6), st.integers(1, 30), st.lists(st.integers(1, 200), max_size=30))
@settings(deadline=None)
def test_so_it_is_on_other_gpus(heads: int, multiprocessors: int, contexts: list[int]) -> None:
    small = FineAttention(kv_heads=heads, multiprocessors=multiprocessors)
    assert small.idle_share(contexts) == idle_share(small, contexts)


@pytest.mark.parametrize("rounds", [1, 2, 5])
@pytest.mark.parametrize("context", [1, 128, 129, 2_000, 30_000])
def test_equal_sequences_that_fill_all_multiprocessors_leave_nothing_idle(rounds: int, context: int) -> None:
    assert H100[4].idle_share([context] * 33 * rounds) == 0
    assert H100[4].idle_share([context] * (33 * rounds + 1)) > 0


def test_known_shares() -> None:
    one = Attention(kv_heads=1, multiprocessors=3)
    assert one.idle_share([]) == one.idle_share([0, 0]) == 0
    # 1 + 2 + 4 blocks: the last is longer than ⌈1.1 · 7 / 3⌉ = 3 and split into 2 + 2, of which one comes after the 1.
    assert one.idle_share([128, 256, 512]) == SHARES * (3 * 3 - 7) // 7
    # Longest first: 2 + 2 at once, and 2 beside them; the 1 comes after one of the three.
    assert one.idle_share([512, 256, 128]) == SHARES * (3 * 3 - 7) // 7
    # 4 blocks are not split where all are 9. First, they fill 4 of the time, and others 3 and 2; last, they come after a 1.
    assert one.idle_share([512, *[128] * 5]) == SHARES * (3 * 4 - 9) // 9
    assert one.idle_share([*[128] * 5, 512]) == SHARES * (3 * 5 - 9) // 9


@pytest.mark.parametrize(("heads", "n"), [(4, 40), (4, 64), (4, 100), (8, 48), (2, 130), (1, 200)])
@pytest.mark.parametrize("seed", range(5))
def test_the_longest_first_waits_no_longer_than_the_longest_last(heads: int, n: int, seed: int) -> None:
    lengths = sorted(np.random.default_rng(seed).lognormal(8, 1, n).astype(int).tolist())
    attention = H100[heads]
    assert attention.idle_share(lengths[::-1]) < attention.idle_share(lengths)


def test_the_order_decides() -> None:
    attention, long = H100[4], [8_000] * 2
    assert attention.idle_share([*long, *[1_000] * 62]) + 50 < attention.idle_share([*[1_000] * 62, *long])


# -- as the simulator follows it ----------------------------------------------------------------------------------------


def decoding(*intercepts: int) -> list[Sequence]:
    sequences = []
    for row, intercept in enumerate(intercepts):
        sequence = Sequence(row, 1, 1_000, 1_000)
        sequence.intercept, sequence.decoding = intercept, True
        sequences.append(sequence)
    return sequences


def test_a_batch_is_looked_at_when_it_changes_and_seldom_if_it_is_large() -> None:
    attention = FineAttention(kv_heads=1, multiprocessors=3)
    share = IdleShare(attention)
    alike, other = decoding(*[40] * 12), decoding(*[40] * 9, 80, 80)
    first, then = attention.idle_share([40] * 12), attention.idle_share([43] * 9 + [83] * 2)
    assert first == 0 < then
    assert share.of(StepPlan(0), alike, epoch=0) == first
    # Twelve sequences: not before the third step, and then only if there is a change.
    assert share.of(StepPlan(2), other, epoch=1) == first
    assert share.of(StepPlan(3), other, epoch=1) == first
    assert share.of(StepPlan(3), other, epoch=2) == then


def test_a_batch_that_stays_is_looked_at_again_once_its_contexts_have_grown_by_a_block() -> None:
    attention, batch = H100[4], decoding(100, 2_000, 3_000)
    share, first, grown = IdleShare(attention), *(attention.idle_share([100 + n, 2_000 + n, 3_000 + n]) for n in (5, 133))
    assert first != grown
    assert share.of(StepPlan(5), batch, epoch=0) == first
    assert share.of(StepPlan(132), batch, epoch=0) == first
    assert share.steps_alike(deque([StepPlan(131), StepPlan(132)]), 100) == 1
    assert share.of(StepPlan(133), batch, epoch=0) == grown
    assert share.steps_alike(deque([StepPlan(132), StepPlan(133)]), 100) == 100
    assert share.steps_alike(deque([StepPlan(132), StepPlan(133)]), 1_000) == 128
    other = StepPlan(132)
    other.idle_share = 7  # launched before the last look
    assert share.steps_alike(deque([other, StepPlan(133)]), 1_000) == 1


def test_it_costs_what_its_term_says() -> None:
    case = next(case for case in map(random_case, range(100)) if case.cost.artifact.attention is not None)
    assert "decode_idle_tokens" in case.cost.artifact.step["full"].gpu_ns
    model = cost_model({"one": 1_000, "decode_idle_tokens": 0.5})
    assert model.gpu_ns(StepFeatures(decode_seqs=3, decode_context_tokens=900, decode_idle_tokens=400)) == 1_200


# -- of a profile -------------------------------------------------------------------------------------------------------


def test_a_point_is_the_point_of_its_name() -> None:
    kinds = ("decode", "prefill", "mixed", "sampling", "energy")
    points = grid(LIMITS, kinds) + grid(replace(LIMITS, tokens_per_decode=4), kinds)
    assert {point.shape for point in points} == {"equal", "spread", "traffic"}
    assert [Point.parse(point.name) for point in points] == points


@pytest.mark.parametrize("name", ["", "decode", "decode 3", "decode 3×", "decode 3×100@5 spread", "mixed 3×100+4×5"])
def test_what_is_no_name_of_a_point_is_none(name: str) -> None:
    with pytest.raises(ValueError, match="no point of a grid"):
        Point.parse(name)


def measured(point: Point, seqs: int, context_tokens: int) -> pd.DataFrame:
    return pd.DataFrame({"point": [point.name], "decode_seqs": [seqs], "decode_context_tokens": [context_tokens]})


def test_idle_tokens_of_a_measured_step() -> None:
    point, attention = Point("decode", 40, 8_000, "traffic"), H100[4]
    grown = [context + 7 for context in point.contexts]
    [found] = idle_tokens(measured(point, 40, sum(grown)), attention)
    assert found == sum(grown) * attention.idle_share(grown) // SHARES > 0
    assert idle_tokens(measured(point, 40, sum(grown)), None).tolist() == [0]


def test_prompts_that_have_begun_to_decode_count_with_their_contexts() -> None:
    point, attention = Point("mixed", 30, 4_000, "spread", num_chunks=2, chunk=512, start=1_024), H100[4]
    begun = [*point.contexts, 1_536, 1_536]
    for seqs, steps in ((30, 3), (31, 4), (32, 5)):
        lengths = [context + steps for context in begun[:seqs]]
        assert idle_tokens(measured(point, seqs, sum(lengths)), attention) == sum(lengths) * attention.idle_share(lengths) // SHARES


def test_a_step_without_decodes_leaves_nothing_idle() -> None:
    assert idle_tokens(measured(Point("prefill", num_chunks=2, chunk=512), 0, 0), H100[4]).tolist() == [0]


@pytest.mark.parametrize(
    ("point", "seqs", "prompts", "in_step"),
    [
        (Point("decode", 64, 1_024), 64, 0, 64),
        (Point("decode", 1, 1_024), 1, 0, 0),  # nobody to keep step with
        (Point("decode", 128, 8_192, "spread"), 128, 0, 128),  # sorted: each is a fiftieth longer than the next
        (Point("decode", 16, 8_192, "spread"), 16, 0, 0),
        (Point("decode", 9, 4_096, "one_long"), 9, 0, 8),
        (Point("mixed", 8, 2_048, num_chunks=1, chunk=128), 8, 1, 0),  # the prompt's step has other kernels,
        (Point("mixed", 8, 2_048, num_chunks=1, chunk=128), 8, 0, 8),  # those before it do not,
        (Point("mixed", 8, 2_048, num_chunks=1, chunk=128), 9, 0, 8),  # and then the prompt decodes, too.
    ],
)
def test_sequences_keep_step_with_a_neighbour_of_their_length(point: Point, seqs: int, prompts: int, in_step: int) -> None:
    assert in_step_seqs(measured(point, seqs, 1).assign(prefill_seqs=prompts), H100[4]).tolist() == [in_step]


def test_hardly_any_of_traffics_contexts_keep_step() -> None:
    point = Point("decode", 512, 16_384, "traffic")
    steps = measured(point, 512, 1).assign(prefill_seqs=0)
    assert in_step_seqs(steps, H100[4])[0] < 512 / 20
    assert in_step_seqs(steps, None).tolist() == [0]


@pytest.mark.parametrize(("gpus", "heads"), [(1, 4), (2, 2), (8, 1)])
def test_heads_are_those_of_one_gpu(gpus: int, heads: int) -> None:
    meta = {"gpu": "H100", "model": "m", "tensor_parallel_size": gpus, "config": {"num_attention_heads": 28, "num_key_value_heads": 4}}
    assert attention_of(meta) == Attention(kv_heads=heads, multiprocessors=132)
    assert attention_of(meta | {"gpu": "cpu"}) is None
