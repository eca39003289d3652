"""Chunks of several tokens: which step emitted which token, and what clients see as gaps."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.drafts.chunklog import ChunkLog
from simulator.reporting.summary import summary
from simulator.simulate import NS_PER_S, simulate
from simulator.step.itl import inter_token_latency, request_itl_s
from tests.equivalence.test_speculation import plain_run, run
from tests.support.services import random_speculative_scenario


def log_of(chunks: list[tuple[int, int, int, list[int]]], steps: int) -> ChunkLog:
    log = ChunkLog()
    for step in range(steps):
        log.add(step, 1, 0, 0, 1, 0, 0, 10 * (step + 1), 10 * (step + 1), 10 * (step + 1), 3, 0, 0)
    for chunk in chunks:
        log.add_chunks(*chunk)
    return log


def test_a_token_is_found_in_the_step_that_emitted_it() -> None:
    log = log_of([(0, 1, 2, [1, 3, 2]), (1, 1, 0, [1]), (0, 7, 6, [4, 1])], 8)
    assert log.segments.tolist() == [[0, 1, 2, 4], [1, 1, 0, 0], [0, 7, 6, 7]]
    assert log.last_tokens.tolist() == [6, 1, 11]
    where = [(0, 1, 2), (0, 2, 3), (0, 4, 3), (0, 5, 4), (0, 6, 4), (1, 1, 0), (2, 7, 6), (2, 10, 6), (2, 11, 7)]
    segments, tokens, steps = (np.array(column) for column in zip(*where, strict=True))
    assert log.steps_of(segments, tokens).tolist() == steps.tolist()


def test_tokens_are_counted_up_to_a_step() -> None:
    log = log_of([(0, 1, 2, [1, 3, 2]), (1, 1, 0, [1]), (0, 7, 6, [4, 1])], 8)
    assert [log.emitted_before(step) for step in range(9)] == [0, 1, 1, 2, 5, 7, 7, 11, 12]


def test_an_empty_log_has_no_tokens() -> None:
    log = log_of([], 0)
    assert log.emitted_before(5) == 0
    assert log.last_tokens.tolist() == []


@pytest.mark.parametrize("seed", range(30))
def test_gaps_are_those_between_the_chunks_of_the_plain_engine(seed: int) -> None:
    result, plain = run(seed, None), plain_run(seed)
    gaps = [np.diff(request.chunk_ns) for request in plain.requests]
    every = np.concatenate(gaps)
    found = inter_token_latency(result, (50.0, 99.0))
    assert found.count == len(every)
    if len(every):
        assert found.max_s == every.max() / NS_PER_S
        assert found.mean_s == pytest.approx(every.mean() / NS_PER_S)
        assert found.percentiles_s[50.0] == pytest.approx(np.percentile(every, 50) / NS_PER_S)
    per_request = request_itl_s(result)
    for row, gap_ns in enumerate(gaps):
        assert np.isnan(per_request[row, 2]) if not len(gap_ns) else per_request[row, 2] == gap_ns.max() / NS_PER_S


@pytest.mark.parametrize("seed", range(30))
def test_tokens_of_a_chunk_have_no_gap_between_them(seed: int) -> None:
    result, plain = run(seed, None), plain_run(seed)
    found = request_itl_s(result, of_tokens=True)
    for request, itl_s in zip(plain.requests, found, strict=True):
        gap_ns = np.diff(request.token_ns)
        expected = np.percentile(gap_ns, (50, 99, 100)) / NS_PER_S if len(gap_ns) else [np.nan] * 3
        assert itl_s == pytest.approx(expected, nan_ok=True)
    every = np.concatenate([np.diff(request.token_ns) for request in plain.requests])
    whole = inter_token_latency(result, (50.0, 99.0), of_tokens=True)
    assert whole.count == len(every)
    if len(every):
        assert [whole.percentiles_s[p] for p in (50.0, 99.0)] == pytest.approx(np.percentile(every, (50, 99)) / NS_PER_S)
    chosen = np.arange(len(plain.requests)) % 2 == 0
    of_chosen = sum(len(request.token_ns) - 1 for request in plain.requests[::2] if len(request.token_ns))
    assert inter_token_latency(result, (50.0,), chosen, of_tokens=True).count == of_chosen


def test_a_windows_throughput_counts_tokens_and_not_chunks() -> None:
    result = simulate(random_speculative_scenario(20_001))
    whole = summary(result, itl=False)
    end_s = result.end_ns / NS_PER_S
    windows = [summary(result, window=(low * end_s, high * end_s), itl=False) for low, high in ((0.0, 0.3), (0.3, 1.0))]
    counted = sum(part["output_throughput"] * part["duration"] for part in windows)
    last = sum(log.emitted_before(log.num_steps) - log.emitted_before(log.num_steps - 1) for log in result.logs)
    total = whole["output_throughput"] * whole["duration"]
    assert total - last - 1e-6 <= counted <= total + 1e-6
    assert total > sum(int((log.segments[:, 3] - log.segments[:, 2] + 1).sum()) for log in result.logs)
