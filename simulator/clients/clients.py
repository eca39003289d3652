"""The clients in front of a service: who sends when, and what became of every request."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import simpy

from simulator.prefix.content import Contents, PromptContent
from simulator.step.events import ARRIVAL, Instant
from simulator.step.sequence import NEVER, Sequence
from simulator.workload import Barrier, ClosedLoop, OpenLoop, Sessions, Workload
from simulator.workload.base import NS_PER_S

if TYPE_CHECKING:
    from simulator.cluster import Cluster

Process = Generator[simpy.Event, Any, None]

SOONEST_NS = 1
"""From an answer to what its client sends next: never the same instant, whose other step ends may be past or to come."""


class Clients:
    """They send as the workload's loop says, and wait for every answer as long as it takes.

    Columns have one row a request (sequences: None where not sent).
    """

    def __init__(self, cluster: Cluster, workload: Workload) -> None:
        requests, n = workload.requests, len(workload.requests)
        self.env = cluster.env
        self.cluster = cluster
        self.done = simpy.Event(cluster.env)
        """Happens when nothing is left to wait for."""
        self.sent_ns = [NEVER] * n
        self.finish_ns = [NEVER] * n
        self.replica_of = [NEVER] * n
        self.sequences: list[Sequence | None] = [None] * n
        self.num_requests = n
        self.unsettled = n
        """Requests that are neither answered nor given up."""
        lengths = (requests.prompt_tokens, requests.output_tokens, requests.max_tokens)
        columns = (*lengths, requests.priority, requests.predicted_tokens, requests.client)
        self._asked = list(zip(*(column.tolist() for column in columns), strict=True))
        self._settle: Callable[[int], None] = lambda _at_ns: None
        self._next_turn: dict[int, tuple[int, int]] = {}
        """In conversations: (row, think time) of what follows the answer to a row."""
        self._contents = self._known_contents(workload)
        self._next_row = 0
        self._batch_left = 0
        cluster.on_finish = self._finished
        cluster.on_move = self._moved
        self._start(workload, n)

    def _start(self, workload: Workload, n: int) -> None:
        match workload.loop:
            case OpenLoop():
                self.env.process(self._send_as_recorded(workload.requests.arrival_ns.tolist(), range(n)))
            case ClosedLoop(num_clients=clients, think_s=think_s):
                think_ns = round(think_s * NS_PER_S)
                self._settle = lambda at_ns: self._send_next(at_ns + think_ns)
                self._next_row = min(clients, n)
                self._send_all(range(self._next_row), 0)
            case Barrier(batch_size=size):
                self._settle = lambda at_ns: self._send_batch_when_empty(size, at_ns)
                self._settle(NEVER)
            case Sessions(follows=follows, think_ns=think_ns):
                turns = enumerate(zip(follows.tolist(), think_ns.tolist(), strict=True))
                self._next_turn = {before: (row, think) for row, (before, think) in turns if before >= 0}
                first = np.flatnonzero(follows < 0)
                self.env.process(self._send_as_recorded(workload.requests.arrival_ns[first].tolist(), first.tolist()))

    @property
    def now_ns(self) -> int:
        """The simulation clock."""
        return int(self.env.now)

    # -- sending ----------------------------------------------------------------------------------------------------

    def _send_as_recorded(self, arrival_ns: list[int], rows: Iterable[int]) -> Process:
        for row, at_ns in zip(rows, arrival_ns, strict=True):
            yield Instant(self.env, at_ns, ARRIVAL)
            self._send(row)

    def _send_all(self, rows: range, at_ns: int) -> None:
        for row in rows:
            self.cluster.at(at_ns, partial(self._send, row))

    def _send_next(self, at_ns: int) -> None:
        if self._next_row < self.num_requests:
            row = self._next_row
            self._next_row += 1
            self.cluster.at(max(at_ns, self.now_ns + SOONEST_NS), partial(self._send, row))

    def _send_batch_when_empty(self, size: int, at_ns: int) -> None:
        self._batch_left -= 1
        if self._batch_left > 0:
            return
        first = self._next_row
        self._batch_left = min(size, self.num_requests - first)
        self._next_row += self._batch_left
        self._send_all(range(first, self._next_row), max(at_ns, self.now_ns + SOONEST_NS) if first else 0)

    def _send(self, row: int) -> None:
        prompt_tokens, output_tokens, max_tokens, priority, predicted_tokens, client = self._asked[row]
        now_ns = self.now_ns
        sequence = Sequence(row, prompt_tokens, output_tokens, max_tokens, priority, now_ns, predicted_tokens, client)
        if self._contents is not None:
            sequence.content = self._contents.of(self._request_of(row), row)
        self.sequences[row] = sequence
        self.sent_ns[row] = now_ns
        self.replica_of[row] = self.cluster.accept(sequence)

    def _moved(self, row: int, index: int) -> None:
        """A request goes on at another replica."""
        self.replica_of[row] = index

    def _request_of(self, row: int) -> int:
        """The request that is sent as `row`."""
        return row

    def _may_send_again(self) -> bool:
        """Whether a prompt may be sent more than once."""
        return False

    def _known_contents(self, workload: Workload) -> Contents | None:
        """What sequences have in common, where anybody heeds it."""
        requests, again = workload.requests, self._may_send_again()
        if not self.cluster.heeds_content or (requests.content is None and not again):
            return None
        content = requests.content or PromptContent.build([[] for _ in range(len(requests))])
        return Contents(content, requests.prompt_tokens if again else None)

    # -- answers ----------------------------------------------------------------------------------------------------

    def _finished(self, sequence: Sequence, egress_ns: int) -> None:
        """The engine is done with a request; its client sees that `egress_ns` later."""
        self.finish_ns[sequence.row] = self.now_ns + egress_ns
        following = self._next_turn.get(self._request_of(sequence.row))
        if following is not None:
            row, think_ns = following
            self.cluster.at(max(self.now_ns + egress_ns + think_ns, self.now_ns + SOONEST_NS), partial(self._send, row))
        self._settled(self.now_ns + egress_ns)

    def _settled(self, at_ns: int) -> None:
        """A request is answered or given up."""
        self.unsettled -= 1
        self._settle(at_ns)
        if self.unsettled == 0:
            self.done.succeed()
