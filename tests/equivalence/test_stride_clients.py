"""The macro-step against the reference where clients leave: aborts cut stretches, retries come at instants of their own."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from simulator.clients.attempts import Outcome
from simulator.simulate import Result, simulate
from tests.support.digest import digest
from tests.support.impatient import impatient_scenario
from tests.support.services import with_stride

SEEDS = range(30_000, 30_150)


@cache
def reference(seed: int) -> Result:
    return simulate(with_stride(impatient_scenario(seed), 1))


def whole(result: Result) -> tuple[str, list[list[int]]]:
    """All that happened, attempts included."""
    attempts = result.attempts
    assert attempts is not None
    columns = (attempts.request, attempts.number, attempts.outcome, attempts.left_ns, attempts.gave_up, attempts.asked_ns)
    return digest(result), [column.tolist() for column in columns]


@pytest.mark.parametrize("stride", [2, 17, None])
@pytest.mark.parametrize("seed", SEEDS)
def test_stride_changes_nothing(seed: int, stride: int | None) -> None:
    assert whole(simulate(with_stride(impatient_scenario(seed), stride))) == whole(reference(seed))


def test_the_sample_holds_what_could_go_wrong() -> None:
    found: Counter[str] = Counter()
    for seed in SEEDS:
        result = reference(seed)
        attempts = result.attempts
        assert attempts is not None
        aborted = attempts.outcome == Outcome.ABORTED
        found["aborted before their first token"] += int((aborted & (result.emitted_tokens == 0)).sum())
        found["aborted while they decoded"] += int((aborted & (result.emitted_tokens > 1)).sum())
        found["aborted after a preemption"] += int((aborted & (result.preemptions > 0)).sum())
        found["answers on their way when the client left"] += int(
            (aborted & (result.emitted_tokens == attempts.requests.output_tokens)).sum()
        )
        found["rejected"] += int((attempts.outcome == Outcome.REJECTED).sum())
        found["retries"] += int((attempts.number > 1).sum())
        found["answered at a retry"] += int(((attempts.number > 1) & (attempts.outcome == Outcome.FINISHED)).sum())
        found["events"] += result.num_events
        found["events saved"] += result.num_events - simulate(with_stride(impatient_scenario(seed), None)).num_events
    assert min(found.values()) >= 10, found
    assert found["aborted while they decoded"] >= 500
    assert found["rejected"] >= 500
    assert found["events saved"] > 0.2 * found["events"]
