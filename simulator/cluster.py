"""Replicas behind a router, and the clients in front of it."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from simulator.content import Contents
from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.events import ARRIVAL, SAMPLE, Instant
from simulator.replica import Replica, Snapshot
from simulator.request import RequestTable
from simulator.router import Router
from simulator.sequence import NEVER, Sequence
from simulator.speculation import Drafting
from simulator.workload import Barrier, ClosedLoop, OpenLoop, Sessions

NS_PER_S = 1_000_000_000
Process = Generator[simpy.Event, Any, None]

SOONEST_NS = 1
"""From an answer to what its client sends next: never the same instant, whose other step ends may be past or to come."""


@dataclass(frozen=True, eq=False)
class Timeline:
    """Samples of every replica at equal distances; step ends of the same instant are included."""

    time_ns: NDArray[np.int64]
    """int64[m]"""
    kv_blocks: NDArray[np.int64]
    """int64[m, replicas], as all that follow."""
    running: NDArray[np.int64]
    waiting: NDArray[np.int64]
    batch_tokens: NDArray[np.int64]


class Cluster:
    """Equal replicas, and what became of every request (sequences by row; None: not sent)."""

    def __init__(
        self,
        env: simpy.Environment,
        engine: EngineConfig,
        cost: CostModel,
        replicas: int,
        router: Router,
        stride: int | None,
        drafting: Drafting | None = None,
    ) -> None:
        self.env = env
        self.router = router
        self._engine = engine
        self.replicas = [Replica(env, index, engine, cost, stride, self._finished, drafting) for index in range(replicas)]
        self.done = simpy.Event(env)
        """Happens when all requests are finished."""
        self.num_sent = 0
        self._egress_ns = cost.artifact.overheads.egress_ns
        self._samples = array("q")
        """The time, then the snapshot of each replica, and so on."""
        self._answered: Callable[[int], None] = lambda _: None
        """Told of the row that was answered."""

    @property
    def now_ns(self) -> int:
        """The simulation clock."""
        return int(self.env.now)

    # -- requests ---------------------------------------------------------------------------------------------------

    def serve(self, requests: RequestTable, loop: OpenLoop | ClosedLoop | Barrier | Sessions) -> None:
        """Starts the clients."""
        n = len(requests)
        self.sent_ns = np.full(n, NEVER, np.int64)
        self.finish_ns = np.full(n, NEVER, np.int64)
        self.replica_of = np.full(n, NEVER, np.int64)
        self.sequences: list[Sequence | None] = [None] * n
        self._unfinished = n
        columns = (requests.prompt_tokens, requests.output_tokens, requests.max_tokens, requests.priority)
        known = requests.content if self._engine.enable_prefix_caching else None
        self._contents = None if known is None else Contents(known, self._engine.block_size)
        self._asked = list(zip(*(column.tolist() for column in columns), strict=True))
        match loop:
            case OpenLoop():
                self.env.process(self._send_as_recorded(requests.arrival_ns.tolist(), range(n)))
            case ClosedLoop(num_clients=clients, think_s=think_s):
                think_ns = round(think_s * NS_PER_S)
                self._answered = lambda _: self._send_later(think_ns)
                self._next_row = min(clients, n)
                self._send_all(range(self._next_row), 0)
            case Barrier(batch_size=size):
                self._batch_left = 0
                self._answered = lambda _: self._send_batch_when_empty(size)
                self._send_batch_when_empty(size)
            case Sessions(follows=follows, think_ns=think_ns):
                first = np.flatnonzero(follows < 0)
                self._next_turn = {before: row for row, before in enumerate(follows.tolist()) if before >= 0}
                self._think_ns = think_ns.tolist()
                self._answered = self._send_next_turn
                self.env.process(self._send_as_recorded(requests.arrival_ns[first].tolist(), first.tolist()))

    def _send_as_recorded(self, arrival_ns: list[int], rows: Iterable[int]) -> Process:
        for row, at_ns in zip(rows, arrival_ns, strict=True):
            yield Instant(self.env, at_ns, ARRIVAL)
            self._send(row)

    def _send_all(self, rows: range, at_ns: int) -> None:
        for row in rows:
            self._at(at_ns, partial(self._send, row))

    def _send_later(self, think_ns: int) -> None:
        if self._next_row < len(self._asked):
            row = self._next_row
            self._next_row += 1
            self._at(self.now_ns + max(self._egress_ns + think_ns, SOONEST_NS), partial(self._send, row))

    def _send_next_turn(self, answered: int) -> None:
        row = self._next_turn.get(answered)
        if row is not None:
            self._at(self.now_ns + max(self._egress_ns + self._think_ns[row], SOONEST_NS), partial(self._send, row))

    def _send_batch_when_empty(self, size: int) -> None:
        self._batch_left -= 1
        if self._batch_left > 0:
            return
        first = self.num_sent
        self._batch_left = min(size, len(self._asked) - first)
        self._send_all(range(first, first + self._batch_left), self.now_ns + max(self._egress_ns, SOONEST_NS) if first else 0)

    def _at(self, at_ns: int, action: Callable[[], None]) -> None:
        instant = Instant(self.env, at_ns, ARRIVAL)
        assert instant.callbacks is not None
        instant.callbacks.append(lambda _: action())

    def _send(self, row: int) -> None:
        prompt_tokens, output_tokens, max_tokens, priority = self._asked[row]
        now = self.now_ns
        sequence = Sequence(row, prompt_tokens, output_tokens, max_tokens, priority, now)
        if self._contents is not None:
            sequence.content = self._contents.of(row)
        index = self.router.route(self.replicas) if len(self.replicas) > 1 else 0
        self.sequences[row] = sequence
        self.sent_ns[row] = now
        self.replica_of[row] = index
        self.num_sent += 1
        self.replicas[index].submit(sequence)

    def _finished(self, sequence: Sequence) -> None:
        self.finish_ns[sequence.row] = self.now_ns + self._egress_ns
        self._unfinished -= 1
        self._answered(sequence.row)
        if self._unfinished == 0:
            self.done.succeed()

    # -- observing --------------------------------------------------------------------------------------------------

    def observe(self, sample_ns: int, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Starts sampling every `sample_ns`; `on_progress` is told then of (requests finished, all requests)."""
        self.env.process(self._sample(sample_ns, on_progress))

    def _sample(self, sample_ns: int, on_progress: Callable[[int, int], None] | None) -> Process:
        for tick in range(1 << 62):
            yield Instant(self.env, tick * sample_ns, SAMPLE)
            self._samples.append(self.now_ns)
            for replica in self.replicas:
                self._samples.extend(replica.snapshot())
            if on_progress is not None:
                on_progress(len(self._asked) - self._unfinished, len(self._asked))

    def timeline(self) -> Timeline:
        """All samples so far."""
        fields = len(Snapshot._fields)
        samples = np.array(self._samples).reshape(-1, 1 + len(self.replicas) * fields)
        states = samples[:, 1:].reshape(-1, len(self.replicas), fields)
        return Timeline(samples[:, 0].copy(), *(states[:, :, column].copy() for column in range(fields)))
