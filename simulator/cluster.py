"""Replicas behind a router."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.policies.policy import VLLM, Policy
from simulator.replica import Replica
from simulator.routers import Ask, Informed, Router
from simulator.routers.prefix import PrefixAffine
from simulator.snapshot import Snapshot
from simulator.speculation import Drafting
from simulator.step.events import ARRIVAL, SAMPLE, Instant
from simulator.step.sequence import NEVER, Sequence

NS_PER_S = 1_000_000_000
Process = Generator[simpy.Event, Any, None]


@dataclass(frozen=True, eq=False)
class Group:
    """Replicas that are alike."""

    name: str
    engine: EngineConfig
    cost: CostModel
    num_replicas: int
    policy: Policy = VLLM
    """What their engines do otherwise than vLLM."""

    @property
    def gpus_per_replica(self) -> int:
        """GPUs of one replica."""
        return self.cost.artifact.tensor_parallel_size


@dataclass(frozen=True, eq=False)
class Timeline:
    """Samples of every replica at equal distances; step ends of the same instant are included."""

    time_ns: NDArray[np.int64]
    """int64[m]"""
    kv_blocks: NDArray[np.int64]
    """int64[m, replicas], as all that follow; 0 before a replica was started."""
    running: NDArray[np.int64]
    waiting: NDArray[np.int64]
    batch_tokens: NDArray[np.int64]


class Cluster:
    """`accept` routes requests to the replicas that serve; `on_finish` is told of every one that an engine finished.

    A replica that fails or is stopped is gone: what is started in its place is a new one, with an index of its own.
    """

    def __init__(
        self,
        env: simpy.Environment,
        groups: Iterable[Group],
        router: Router,
        stride: int | None,
        drafting: Drafting | None = None,
        seed: int = 0,
    ) -> None:
        self.env = env
        self.router = router
        self._drafting = drafting
        self._seed = seed
        self.groups = tuple(groups)
        self.on_finish: Callable[[Sequence, int], None] = lambda _sequence, _egress_ns: None
        self.on_move: Callable[[int, int], None] = lambda _row, _index: None
        """Told of (row, index of the replica where it goes on)."""
        self.on_loss: Callable[[Sequence], None] = lambda _sequence: None
        self.replicas: list[Replica] = []
        """All that there ever were."""
        self.serving: list[Replica] = []
        """Those that get new requests."""
        self.group_of: list[int] = []
        """Index of the group of each replica."""
        self.started_ns: list[int] = []
        self.stopped_ns: list[int] = []
        """When each replica was gone; −1: it is there."""
        self._stride = stride
        self.draining: dict[int, Callable[[], None]] = {}
        """What is to be done once a replica has no requests left, by its index."""
        self._samples = array("q")
        """The time, the number of replicas, then the snapshot of each, and so on."""
        for index, group in enumerate(self.groups):
            for _ in range(group.num_replicas):
                self.start(index)
        if isinstance(router, Informed):
            env.process(self._inform(router))

    @property
    def now_ns(self) -> int:
        """The simulation clock."""
        return int(self.env.now)

    @property
    def heeds_content(self) -> bool:
        """Whether it matters what prompts begin with."""
        return isinstance(self.router, PrefixAffine) or any(group.engine.enable_prefix_caching for group in self.groups)

    @property
    def outstanding(self) -> int:
        """Requests accepted, and neither finished nor left by their clients."""
        return sum(replica.outstanding for replica in self.replicas)

    # -- requests ---------------------------------------------------------------------------------------------------

    def accept(self, sequence: Sequence) -> int:
        """Routes a request that arrives now; returns the replica's index. At least one replica serves."""
        serving = self.serving
        replica = serving[self.router.route(serving, Ask.about(sequence))] if len(serving) > 1 else serving[0]
        replica.submit(sequence)
        return replica.index

    def _inform(self, router: Informed) -> Process:
        for tick in range(1 << 62):
            yield Instant(self.env, tick * router.every_ns, SAMPLE)
            router.learn(self.serving)

    def abort(self, sequence: Sequence, index: int) -> None:
        """The client of an unfinished request on a replica left."""
        self.replicas[index].abort(sequence)
        self._left(index)

    def _finished(self, index: int, sequence: Sequence) -> None:
        self.on_finish(sequence, self.replicas[index].egress_ns)
        self._left(index)

    # -- replicas that come and go ------------------------------------------------------------------------------------

    def start(self, group: int) -> Replica:
        """A new replica of a group, serving from now on."""
        index, kind = len(self.replicas), self.groups[group]

        def finished(sequence: Sequence) -> None:
            self._finished(index, sequence)

        drafting = None if kind.engine.speculative is None else self._drafting
        replica = Replica(self.env, index, kind.engine, kind.cost, self._stride, finished, drafting, kind.policy, self._seed)
        self.replicas.append(replica)
        self.group_of.append(group)
        self.started_ns.append(self.now_ns)
        self.stopped_ns.append(NEVER)
        self.serving.append(replica)
        return replica

    def stop(self, replica: Replica) -> None:
        """The replica is gone at this instant, before the step ends of it; what it was answering is lost (`on_loss`)."""
        if replica in self.serving:
            self.serving.remove(replica)
        self.stopped_ns[replica.index] = self.now_ns
        then = self.draining.pop(replica.index, None)
        if then is not None:
            self.at(self.now_ns + 1, then)
        for sequence in replica.fail():
            self.on_loss(sequence)

    def drain(self, replica: Replica, then: Callable[[], None]) -> None:
        """The replica gets no new requests; `then` is called once it has none left."""
        self.serving.remove(replica)
        self.draining[replica.index] = then
        self._left(replica.index)

    def take_back(self, replica: Replica) -> None:
        """A replica that was draining serves again."""
        del self.draining[replica.index]
        self.serving.append(replica)

    def at(self, at_ns: int, action: Callable[[], None], priority: int = ARRIVAL) -> None:
        """`action` happens at that instant."""
        instant = Instant(self.env, at_ns, priority)
        assert instant.callbacks is not None
        instant.callbacks.append(lambda _: action())

    def _left(self, index: int) -> None:
        if index in self.draining and self.replicas[index].outstanding == 0:
            # Not within the step end that brought the last answer: whatever follows has an instant of its own.
            self.at(self.now_ns + 1, lambda: self._drained(index))

    def _drained(self, index: int) -> None:
        then = self.draining.pop(index, None)
        if then is not None:
            then()

    # -- observing --------------------------------------------------------------------------------------------------

    def observe(self, sample_ns: int, on_sample: Callable[[], None] | None = None) -> None:
        """Starts sampling every `sample_ns`; `on_sample` is called then."""
        self.env.process(self._sample(sample_ns, on_sample))

    def _sample(self, sample_ns: int, on_sample: Callable[[], None] | None) -> Process:
        for tick in range(1 << 62):
            yield Instant(self.env, tick * sample_ns, SAMPLE)
            self._samples.append(self.now_ns)
            self._samples.append(len(self.replicas))
            for replica in self.replicas:
                self._samples.extend(replica.snapshot())
            if on_sample is not None:
                on_sample()

    def timeline(self) -> Timeline:
        """All samples so far."""
        fields, replicas = len(Snapshot._fields), len(self.replicas)
        samples = np.array(self._samples, np.int64)
        times, states, at = [], [], 0
        while at < len(samples):
            width = int(samples[at + 1]) * fields
            state = np.zeros(replicas * fields, np.int64)
            state[:width] = samples[at + 2 : at + 2 + width]
            times.append(int(samples[at]))
            states.append(state)
            at += 2 + width
        table = np.array(states, np.int64).reshape(-1, replicas, fields)
        return Timeline(np.array(times, np.int64), *(table[:, :, column].copy() for column in range(fields)))
