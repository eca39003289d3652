"""The places of a service: on which node a replica runs, and what is started, drained, stopped or broken there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simulator.cluster import Cluster
from simulator.replica import Replica
from simulator.step.sequence import NEVER

GPUS_PER_NODE = 8


@dataclass(eq=False)
class Place:
    """GPUs that hold one replica at a time."""

    group: int
    node: int
    gpus: int
    held_from_ns: int
    held_to_ns: int = NEVER
    replica: Replica | None = None
    starts: int = 0
    """Counts what was started here: a start that was overtaken by a failure must not come true."""


class Fleet:
    """Places side by side on nodes, in the order of their groups: the first GPUs of the first node hold the first replica."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.seed = seed
        self.places: list[Place] = []
        self._gpus = 0
        for replica, group in zip(cluster.replicas, cluster.group_of, strict=True):
            self._add(group).replica = replica

    def _add(self, group: int) -> Place:
        gpus = self.cluster.groups[group].gpus_per_replica
        if gpus <= GPUS_PER_NODE and self._gpus % GPUS_PER_NODE + gpus > GPUS_PER_NODE:
            self._gpus += GPUS_PER_NODE - self._gpus % GPUS_PER_NODE  # no replica straddles two nodes that fits on one
        place = Place(group, self._gpus // GPUS_PER_NODE, gpus, self.cluster.now_ns)
        self._gpus += gpus
        self.places.append(place)
        return place

    @property
    def nodes(self) -> int:
        """Nodes that the places of now lie on."""
        return 1 + max((place.node for place in self.places), default=-1)

    def on_node(self, node: int) -> list[Place]:
        """Places whose GPUs are held there."""
        return [place for place in self.places if place.node == node and place.held_to_ns == NEVER]

    def gpu_ns(self, now_ns: int) -> int:
        """GPU time held so far."""
        return sum(p.gpus * ((now_ns if p.held_to_ns == NEVER else p.held_to_ns) - p.held_from_ns) for p in self.places)

    # -- what is done to a place ------------------------------------------------------------------------------------

    def order(self, group: int, start_ns: int) -> Place:
        """One more place for a group, at this instant; its replica serves `start_ns` later."""
        place = self._add(group)
        self.start(place, start_ns)
        return place

    def start(self, place: Place, start_ns: int) -> None:
        """An engine starts, and serves `start_ns` from now."""
        place.starts += 1
        number = place.starts

        def serve() -> None:
            if place.starts == number and place.held_to_ns == NEVER:
                place.replica = self.cluster.start(place.group)

        self.cluster.at(self.cluster.now_ns + max(start_ns, 1), serve)

    def fail(self, place: Place) -> None:
        """What runs or starts there is gone."""
        place.starts += 1
        if place.replica is not None:
            self.cluster.stop(place.replica)
            place.replica = None

    def drain(self, place: Place, then: Callable[[], None]) -> None:
        """No new requests; when those there have ended the engine is stopped, and `then` is called. Not where nothing serves."""

        def stop() -> None:
            self.fail(place)
            then()

        if place.replica is not None and place.replica in self.cluster.serving:
            self.cluster.drain(place.replica, stop)

    def release(self, place: Place) -> None:
        """Its GPUs are given back."""
        place.starts += 1
        place.held_to_ns = self.cluster.now_ns
