"""Clients that time out, try again and give up, in front of a service that may turn them away."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from simulator.clients.attempts import Attempts, Outcome
from simulator.clients.clients import Clients
from simulator.clients.patience import ClientConfig, Failure
from simulator.clients.ratelimit import make_limiter
from simulator.step.sequence import NEVER, Sequence
from simulator.workload import Workload
from simulator.workload.base import NS_PER_S

if TYPE_CHECKING:
    from simulator.cluster import Cluster

FOREVER_NS = 1 << 62


class ImpatientClients(Clients):
    """A request is one or more attempts; each has a row, the first ones those of the workload.

    An answer that arrives at the very instant of its deadline is too late.
    """

    def __init__(self, cluster: Cluster, workload: Workload, config: ClientConfig, seed: int) -> None:
        n = len(workload.requests)
        self._workload = workload
        self._config = config
        self._seed = seed
        self._limiter = None if config.rate_limit is None else make_limiter(config.rate_limit)
        self._timeout_ns = FOREVER_NS if config.timeout_s is None else max(round(config.timeout_s * NS_PER_S), 1)
        self._patience_ns = [FOREVER_NS] * n if config.patience is None else config.patience.draw_ns(seed, n).tolist()
        self._until_first_token = config.patience is not None and config.patience.until == "ttft"
        self._request = list(range(n))
        self._number = [1] * n
        self._outcome = [Outcome.UNSENT] * n
        self._left_ns = [NEVER] * n
        self._current = list(range(n))
        """Row of the latest attempt of each request."""
        self._given_up: set[int] = set()
        self._late: set[int] = set()
        """Attempts that the engine finished, but whose answer comes after their deadline."""
        super().__init__(cluster, workload)
        cluster.on_loss = self._lost

    def attempts(self) -> Attempts:
        """What became of all attempts so far."""
        sent_ns = np.array(self.sent_ns, np.int64)
        return Attempts.of(self._workload.requests, self._request, self._number, self._outcome, self._left_ns, self._given_up, sent_ns)

    # -- sending ----------------------------------------------------------------------------------------------------

    def _send(self, row: int) -> None:
        request, now_ns = self._request[row], self.now_ns
        if self._number[row] == 1 and self._patience_ns[request] < FOREVER_NS:
            self.cluster.at(now_ns + self._patience_ns[request], partial(self._lose_patience, request))
        refused_ns = self._refused_ns(now_ns)
        if refused_ns is not None:
            self.sent_ns[row] = now_ns
            self._leave(row, Outcome.REJECTED, "rejected", refused_ns)
            return
        super()._send(row)
        self._outcome[row] = Outcome.IN_FLIGHT
        if self._timeout_ns < FOREVER_NS:
            self.cluster.at(now_ns + self._timeout_ns, partial(self._time_out, row))

    def _refused_ns(self, now_ns: int) -> int | None:
        """None: the front lets a request through; else the answer's `Retry-After`, 0 where it has none."""
        if not self.cluster.serving:
            return 0
        return None if self._limiter is None else self._limiter.refuse_ns(now_ns, self.cluster.outstanding)

    def _send_again(self, request: int) -> None:
        if request in self._given_up:
            return
        row = len(self._request)
        self._request.append(request)
        self._number.append(self._number[self._current[request]] + 1)
        self._outcome.append(Outcome.UNSENT)
        for column in (self._left_ns, self.sent_ns, self.finish_ns, self.replica_of):
            column.append(NEVER)
        self.sequences.append(None)
        self._asked.append(self._asked[request])
        self._current[request] = row
        self._send(row)

    # -- leaving ----------------------------------------------------------------------------------------------------

    def _time_out(self, row: int) -> None:
        if self._outcome[row] is Outcome.IN_FLIGHT:
            self._abort(row)
            self._leave(row, Outcome.ABORTED, "timeout")

    def _lose_patience(self, request: int) -> None:
        row = self._current[request]
        outcome, sequence = self._outcome[row], self.sequences[row]
        if outcome is Outcome.FINISHED or request in self._given_up:
            return
        if outcome is Outcome.IN_FLIGHT:
            assert sequence is not None
            if self._until_first_token and self._first_token_arrives_ns(sequence) < self.now_ns:
                return
            self._abort(row)
            self._leave(row, Outcome.ABORTED, None)
        else:  # between two attempts
            self._give_up(request)

    def _abort(self, row: int) -> None:
        sequence = self.sequences[row]
        if row not in self._late and sequence is not None:
            self.cluster.abort(sequence, self.replica_of[row])

    def _leave(self, row: int, outcome: Outcome, failure: Failure | None, retry_after_ns: int = 0) -> None:
        """An attempt ends without an answer; another follows unless the client has had enough."""
        request, retry = self._request[row], self._config.retry
        self._outcome[row] = outcome
        self._left_ns[row] = self.now_ns
        if retry is None or failure not in retry.after or self._number[row] >= retry.max_attempts:
            self._give_up(request)
        else:
            backoff_ns = retry.backoff_ns(self._seed, request, self._number[row], retry_after_ns)
            self.cluster.at(self.now_ns + backoff_ns, partial(self._send_again, request))

    def _give_up(self, request: int) -> None:
        """The request is never answered; what its conversation would have gone on with is never sent."""
        self._given_up.add(request)
        following = self._next_turn.get(request)
        while following is not None:
            self.unsettled -= 1
            following = self._next_turn.get(following[0])
        self._settled(self.now_ns)

    def _request_of(self, row: int) -> int:
        return self._request[row]

    def _may_send_again(self) -> bool:
        return self._config.retry is not None

    def _lost(self, sequence: Sequence) -> None:
        """A replica failed with this request; the connection is reset."""
        row = sequence.row
        if self._outcome[row] is Outcome.IN_FLIGHT:
            self._leave(row, Outcome.LOST, "lost")

    # -- answers ----------------------------------------------------------------------------------------------------

    def _finished(self, sequence: Sequence, egress_ns: int) -> None:
        row, finish_ns = sequence.row, self.now_ns + egress_ns
        if self._too_late(row, sequence, finish_ns):
            self._late.add(row)
            return
        self._outcome[row] = Outcome.FINISHED
        super()._finished(sequence, egress_ns)

    def _too_late(self, row: int, sequence: Sequence, finish_ns: int) -> bool:
        """Whether the client will have left before the answer arrives: its deadline, still to come, will say so."""
        if finish_ns >= self.sent_ns[row] + self._timeout_ns:
            return True
        request = self._request[row]
        patient_until_ns = self.sent_ns[request] + self._patience_ns[request]
        if patient_until_ns <= self.now_ns:
            return False  # the first token came in time
        needed_ns = self._first_token_arrives_ns(sequence) if self._until_first_token else finish_ns
        return needed_ns >= patient_until_ns

    def _first_token_arrives_ns(self, sequence: Sequence) -> int:
        if sequence.first_token_ns == NEVER:
            return FOREVER_NS
        return sequence.first_token_ns + sequence.first_egress_ns
