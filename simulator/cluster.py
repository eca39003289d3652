"""Replicas behind a router."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.events import SAMPLE, Instant
from simulator.replica import Replica, Snapshot
from simulator.router import Router
from simulator.sequence import Sequence

NS_PER_S = 1_000_000_000
Process = Generator[simpy.Event, Any, None]


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
    """Equal replicas. `accept` routes requests to them, `on_finish` is told of every one that an engine finished."""

    def __init__(
        self, env: simpy.Environment, engine: EngineConfig, cost: CostModel, replicas: int, router: Router, stride: int | None
    ) -> None:
        self.env = env
        self.router = router
        self.on_finish: Callable[[Sequence, int], None] = lambda _sequence, _egress_ns: None
        self.on_loss: Callable[[Sequence], None] = lambda _sequence: None
        self.replicas = [Replica(env, index, engine, cost, stride, self._finished) for index in range(replicas)]
        self._egress_ns = cost.artifact.overheads.egress_ns
        self._samples = array("q")
        """The time, then the snapshot of each replica, and so on."""

    @property
    def now_ns(self) -> int:
        """The simulation clock."""
        return int(self.env.now)

    @property
    def outstanding(self) -> int:
        """Requests accepted, and neither finished nor left by their clients."""
        return sum(replica.outstanding for replica in self.replicas)

    def accept(self, sequence: Sequence) -> int:
        """Routes a request that arrives now; returns the replica's index."""
        index = self.router.route(self.replicas) if len(self.replicas) > 1 else 0
        self.replicas[index].submit(sequence)
        return index

    def egress_ns(self, index: int) -> int:
        """From the end of a replica's step to the token at the client."""
        return self.replicas[index].cost.artifact.overheads.egress_ns

    def abort(self, sequence: Sequence, index: int) -> None:
        """The client of an unfinished request on a replica left."""
        self.replicas[index].abort(sequence)

    def _finished(self, sequence: Sequence) -> None:
        self.on_finish(sequence, self._egress_ns)

    # -- observing --------------------------------------------------------------------------------------------------

    def observe(self, sample_ns: int, on_sample: Callable[[], None] | None = None) -> None:
        """Starts sampling every `sample_ns`; `on_sample` is called then."""
        self.env.process(self._sample(sample_ns, on_sample))

    def _sample(self, sample_ns: int, on_sample: Callable[[], None] | None) -> Process:
        for tick in range(1 << 62):
            yield Instant(self.env, tick * sample_ns, SAMPLE)
            self._samples.append(self.now_ns)
            for replica in self.replicas:
                self._samples.extend(replica.snapshot())
            if on_sample is not None:
                on_sample()

    def timeline(self) -> Timeline:
        """All samples so far."""
        fields = len(Snapshot._fields)
        samples = np.array(self._samples).reshape(-1, 1 + len(self.replicas) * fields)
        states = samples[:, 1:].reshape(-1, len(self.replicas), fields)
        return Timeline(samples[:, 0].copy(), *(states[:, :, column].copy() for column in range(fields)))
