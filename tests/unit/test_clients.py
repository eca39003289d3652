"""Impatient clients: what is drawn, when they come back, and what a config may say."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from simulator.clients.attempts import Outcome
from simulator.clients.patience import ClientConfig, Patience, Retry
from simulator.clients.ratelimit import MaxOutstanding, TokenBucket, make_limiter
from simulator.cost import CostModel
from simulator.metrics import latencies, request_columns
from simulator.reporting.summary import summary
from simulator.request import RequestTable
from simulator.simulate import Result, Scenario, simulate
from simulator.workload import ClosedLoop, OpenLoop, Workload
from tests.support.queues import engine

STEP_S = 0.01


def serve(arrival_s: list[float], outputs: list[int], clients: ClientConfig, *, seats: int = 1, loop: object = None) -> Result:
    arrival_ns = np.rint(np.array(arrival_s) * 1e9).astype(np.int64)
    requests = RequestTable.build(arrival_ns, np.ones(len(outputs), np.int64), np.array(outputs))
    workload = Workload(requests, loop or OpenLoop())
    return simulate(Scenario(workload, engine(seats), CostModel.constant(round(STEP_S * 1e9)), clients=clients, sample_s=1.0))


def test_a_token_bucket_lets_a_burst_through_and_then_its_rate() -> None:
    limiter = make_limiter(TokenBucket(rate=2.0, burst=3))
    assert [limiter.refuse_ns(0, 0) for _ in range(4)] == [None, None, None, 500_000_000]
    assert limiter.refuse_ns(400_000_000, 0) == 100_000_000
    assert limiter.refuse_ns(500_000_000, 0) is None
    # After a pause the bucket is full again, not fuller.
    assert [limiter.refuse_ns(60_000_000_000, 0) is None for _ in range(4)] == [True, True, True, False]


def test_a_limit_on_outstanding_requests_counts_them() -> None:
    limiter = make_limiter(MaxOutstanding(limit=2, retry_after_s=0.25))
    assert limiter.refuse_ns(0, 1) is None
    assert limiter.refuse_ns(0, 2) == 250_000_000
    assert make_limiter(MaxOutstanding(limit=2)).refuse_ns(0, 5) == 0


@pytest.mark.parametrize("kind", ["exponential", "lognormal", "constant"])
def test_patience_has_its_mean_and_a_request_keeps_its_own(kind: str) -> None:
    patience = Patience(kind=kind, mean_s=30.0, cv=0.7)
    drawn = patience.draw_ns(5, 40_000)
    assert drawn.mean() / 1e9 == pytest.approx(30.0, rel=0.02)
    assert drawn.std() / drawn.mean() == pytest.approx({"exponential": 1.0, "lognormal": 0.7, "constant": 0.0}[kind], abs=0.03)
    assert patience.draw_ns(5, 100).tolist() == drawn[:100].tolist()
    assert kind == "constant" or patience.draw_ns(6, 100).tolist() != drawn[:100].tolist()


def test_the_back_off_doubles_up_to_its_most_and_jitter_only_shortens_it() -> None:
    plain = Retry(jitter=0.0)
    assert [plain.backoff_ns(0, 7, attempt, 0) / 1e9 for attempt in range(1, 7)] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    jittered = [Retry().backoff_ns(0, row, 2, 0) / 1e9 for row in range(2000)]
    assert 0.75 <= min(jittered) < 0.77
    assert 0.98 < max(jittered) <= 1.0
    # Drawn by request and attempt: the order of asking makes no difference.
    assert Retry().backoff_ns(0, 3, 2, 0) == Retry().backoff_ns(0, 3, 2, 0) != Retry().backoff_ns(0, 4, 2, 0)


def test_a_retry_after_is_obeyed_up_to_a_minute() -> None:
    retry = Retry(jitter=0.0)
    assert retry.backoff_ns(0, 0, 1, 30_000_000_000) == 30_000_000_000
    assert retry.backoff_ns(0, 0, 1, 61_000_000_000) == 500_000_000


def test_an_aborted_request_makes_room_at_the_end_of_the_step() -> None:
    # The second waits for the seat; the first is aborted at 0.505 s, in the middle of a step, and the seat is free at 0.51 s.
    result = serve([0.0, 0.1], [1000, 5], ClientConfig(timeout_s=0.505), seats=1)
    assert result.attempts is not None
    assert result.attempts.outcome.tolist() == [Outcome.ABORTED, Outcome.FINISHED]
    assert result.attempts.left_ns[0] == 505_000_000
    # Of the step in which the abort was seen the token is dropped; the async engine had a further row in flight.
    assert result.emitted_tokens.tolist() == [50, 5]
    assert result.scheduled_ns[1] in (510_000_000, 520_000_000)


def test_a_retry_is_a_request_of_its_own_and_latency_counts_from_the_first() -> None:
    retry = Retry(max_attempts=2, base_s=1.0, jitter=0.0)
    # Two seconds of work and one of patience: the first attempt times out, the second finds the engine as slow.
    result = serve([0.0, 0.0], [200, 20], ClientConfig(timeout_s=1.0, retry=retry), seats=1)
    attempts = result.attempts
    assert attempts is not None
    assert attempts.requests.request_id.tolist() == ["0", "1", "0#2", "1#2"]
    assert attempts.outcome.tolist() == [Outcome.ABORTED, Outcome.ABORTED, Outcome.ABORTED, Outcome.ABORTED]
    assert attempts.gave_up.tolist() == [False, False, True, True]
    assert np.isinf(latencies(result)["e2e"].values_s).all()
    easy = serve([0.0, 0.0], [90, 20], ClientConfig(timeout_s=1.0, retry=retry), seats=1)
    assert easy.attempts is not None
    assert easy.attempts.outcome.tolist() == [Outcome.FINISHED, Outcome.ABORTED, Outcome.FINISHED]
    e2e = latencies(easy)["e2e"].values_s
    assert sorted(e2e.tolist()) == pytest.approx([0.9, 2.2])
    figures = summary(easy)
    assert figures["attempts"] == 3
    assert figures["attempts_per_request"] == 1.5
    assert figures["retried_share"] == 0.5
    assert figures["given_up"] == 0
    assert request_columns(easy)["outcome"].tolist() == ["finished", "aborted", "finished"]


def test_whoever_leaves_between_two_attempts_does_not_come_back() -> None:
    clients = ClientConfig(
        timeout_s=0.5, retry=Retry(base_s=8.0, max_s=8.0, jitter=0.0), patience=Patience(until="e2e", kind="constant", mean_s=2.0)
    )
    result = serve([0.0], [100], clients)
    assert result.attempts is not None
    assert result.attempts.outcome.tolist() == [Outcome.ABORTED]
    assert result.attempts.gave_up.tolist() == [True]
    assert result.end_ns == 2_000_000_000


def test_a_first_token_keeps_its_user() -> None:
    clients = ClientConfig(patience=Patience(until="ttft", kind="constant", mean_s=0.5))
    result = serve([0.0, 0.0], [100, 10], clients, seats=1)
    assert result.attempts is not None
    assert result.attempts.outcome.tolist() == [Outcome.FINISHED, Outcome.ABORTED]


def test_a_closed_loop_goes_on_after_a_refusal() -> None:
    clients = ClientConfig(rate_limit=MaxOutstanding(limit=2))
    result = serve([0.0] * 12, [10] * 12, clients, seats=4, loop=ClosedLoop(3, 0.05))
    assert result.attempts is not None
    assert (result.attempts.outcome == Outcome.REJECTED).sum() > 0
    assert set(result.attempts.outcome.tolist()) == {Outcome.FINISHED, Outcome.REJECTED}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"timeout": 3}, "unknown key 'timeout'; valid: timeout_s, patience, retry, rate_limit"),
        ({"rate_limit": {"kind": "leaky"}}, "leaky"),
        ({"retry": {"after": ["anger"]}}, "anger"),
    ],
)
def test_mistakes_are_told(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ClientConfig.model_validate(config)
