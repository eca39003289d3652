"""Optimizations together: the macro-step against single steps, to the nanosecond, and block by block."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest

from simulator.clients.attempts import Outcome
from simulator.routers.vllm import VllmDataParallel
from simulator.scheduler import Scheduler
from simulator.simulate import Result, simulate
from simulator.step.stepplan import StepPlan
from simulator.workload import Sessions
from tests.support.combined import KINDS, Make, cached, drafting, without_room_for_padding
from tests.support.digest import digest
from tests.support.impatient import impatient_scenario
from tests.support.services import random_speculative_scenario, with_stride
from tests.support.watch import simulate_watched

SEEDS = range(60_000, 60_060)
COMBINED: dict[str, Make] = {f"prefix caching, {kind}": partial(cached, make) for kind, make in KINDS.items()}
COMBINED |= {f"drafts, {kind}": partial(drafting, make) for kind, make in KINDS.items()}
COMBINED |= {f"prefix caching, drafts, {kind}": partial(cached, partial(drafting, make)) for kind, make in KINDS.items()}
COMBINED["prefix caching, drafts"] = partial(cached, random_speculative_scenario)
COMBINED["prefix caching, drafts, no room for padding"] = without_room_for_padding


@pytest.fixture(autouse=True)
def _counts_are_told_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """These services last milliseconds."""
    monkeypatch.setattr(VllmDataParallel, "every_ns", 4_000)


@cache
def reference(kind: str, seed: int) -> Result:
    return simulate(with_stride(COMBINED[kind](seed), 1))


def whole(result: Result) -> tuple[object, ...]:
    attempts = result.attempts
    ends = [] if attempts is None else [attempts.outcome.tolist(), attempts.left_ns.tolist(), attempts.request.tolist()]
    return digest(result), ends, result.group.tolist(), result.lifetime_ns.tolist(), result.gpu_ns


@pytest.mark.parametrize("stride", [3, None])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", COMBINED)
def test_stride_changes_nothing(kind: str, seed: int, stride: int | None) -> None:
    assert whole(simulate(with_stride(COMBINED[kind](seed), stride))) == whole(reference(kind, seed))


@pytest.mark.parametrize("seed", SEEDS[:20])
@pytest.mark.parametrize("kind", COMBINED)
def test_free_and_held_blocks_are_all_usable_blocks(kind: str, seed: int) -> None:
    def check(scheduler: Scheduler, plan: StepPlan) -> None:
        scheduler.check_blocks()

    simulate_watched(COMBINED[kind](seed), check, check)


def test_the_sample_holds_what_could_go_wrong() -> None:
    found: Counter[str] = Counter()
    for kind in COMBINED:
        for seed in SEEDS:
            result = reference(kind, seed)
            attempts, workload = result.attempts, result.scenario.workload
            found[f"tokens found: {kind}"] += int(result.cached_tokens.sum())
            found[f"preemptions: {kind}"] += int(result.preemptions.sum())
            found["held back"] += int(result.held_back.sum())
            if attempts is None:
                continue
            again, cached_tokens = attempts.number > 1, result.cached_tokens
            found["aborted with blocks that others had, too"] += int(((attempts.outcome == Outcome.ABORTED) & (cached_tokens > 0)).sum())
            found["a retry finds its own prompt"] += workload.requests.content is None and bool(cached_tokens[again].any())
            found["lost"] += int((attempts.outcome == Outcome.LOST).sum())
            found["turns never sent"] += isinstance(workload.loop, Sessions) and int((attempts.outcome == Outcome.UNSENT).sum())
    for kind in COMBINED:
        assert found[f"tokens found: {kind}"] > 500 or "prefix" not in kind, found
        assert found[f"preemptions: {kind}"] >= 10, found
    for name in ("held back", "aborted with blocks that others had, too", "a retry finds its own prompt", "lost", "turns never sent"):
        assert found[name] >= 5, found


@pytest.mark.parametrize("seed", [*SEEDS[::4], *range(61_000, 61_040, 4)])
def test_a_conversation_ends_with_the_turn_that_is_given_up(seed: int) -> None:
    result = simulate(replace(cached(impatient_scenario, seed), horizon_s=None))
    attempts, loop = result.attempts, result.scenario.workload.loop
    assert attempts is not None
    assert isinstance(loop, Sessions)
    answered = set(attempts.request[attempts.outcome == Outcome.FINISHED].tolist())
    first = attempts.number == 1
    sent = result.sent_ns[first] >= 0
    follows = loop.follows
    assert [before < 0 or before in answered for before in follows.tolist()] == sent.tolist()
    ended = attempts.request[attempts.gave_up | (attempts.outcome == Outcome.FINISHED)]
    assert sorted(ended.tolist()) == np.flatnonzero(sent).tolist()
