"""The number of replicas follows the load: Kubernetes' rule, with engines that take their time to start."""

from __future__ import annotations

from collections import deque
from math import ceil
from typing import Literal

from pydantic import Field, model_validator

from simulator.fleet.fleet import Fleet, Place
from simulator.step.events import CONTROL
from simulator.workload.base import NS_PER_S, Spec


class Autoscaling(Spec):
    """The size of the main pool: desired = ⌈current × metric / target⌉, nothing within the tolerance.

    When it wants fewer replicas it takes the largest number that it wanted within the last `scale_down_window_s`.
    Source: Kubernetes 1.31 HorizontalPodAutoscaler.
    """

    metric: Literal["outstanding", "kv_usage"] = "outstanding"
    """Mean over the replicas that serve: unfinished requests, or the share of KV blocks held."""
    target: float = Field(gt=0)
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(ge=1)
    interval_s: float = Field(15.0, gt=0)
    tolerance: float = Field(0.1, ge=0)
    scale_down_window_s: float = Field(300.0, ge=0)
    engine_start_s: float | None = Field(None, ge=0)
    """From the order of a GPU to the first request; null: as measured, without the time to get the weights."""

    @model_validator(mode="after")
    def _some_room(self) -> Autoscaling:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than min_replicas {self.min_replicas}")
        return self

    def describe(self) -> str:
        """One line for a report."""
        what = "requests" if self.metric == "outstanding" else "of the KV cache"
        return (
            f"{self.target:g} {what} a replica, {self.min_replicas} to {self.max_replicas} replicas, looked at every {self.interval_s:g} s,"
            f" fewer after {self.scale_down_window_s:g} s"
        )


class Autoscaler:
    """Looks at the service every `interval_s`, after the step ends of that instant."""

    def __init__(self, fleet: Fleet, spec: Autoscaling) -> None:
        self._fleet = fleet
        self._spec = spec
        self._wanted: deque[tuple[int, int]] = deque()
        """(when, how many were wanted)."""
        self._draining: list[Place] = []
        self._start_ns = round((spec.engine_start_s or 0) * NS_PER_S)
        self._wait()

    def _wait(self) -> None:
        cluster = self._fleet.cluster
        cluster.at(cluster.now_ns + round(self._spec.interval_s * NS_PER_S), self._look, CONTROL)

    def _look(self) -> None:
        kept = [place for place in self._fleet.places if place.group == 0 and place.held_to_ns < 0 and place not in self._draining]
        desired = self._steadied(self._desired(len(kept)))
        for _ in range(desired - len(kept)):
            if not self._take_back():
                self._fleet.order(0, self._start_ns)
        # The newest go first; what others drain is theirs.
        free = [place for place in reversed(kept) if place.replica is None or place.replica in self._fleet.cluster.serving]
        for place in free[: max(len(kept) - desired, 0)]:
            self._dismiss(place)
        self._wait()

    def _take_back(self) -> bool:
        """A replica that is on its way out stays, if there is one."""
        cluster = self._fleet.cluster
        for place in self._draining:
            if place.replica is not None and place.replica.index in cluster.draining:
                self._draining.remove(place)
                cluster.take_back(place.replica)
                return True
        return False

    def _desired(self, current: int) -> int:
        """How many replicas the load of now asks for, those on their way counted as there."""
        spec, cluster = self._spec, self._fleet.cluster
        replicas = [replica for replica in cluster.serving if cluster.group_of[replica.index] == 0]
        if spec.metric == "outstanding":
            load = float(sum(replica.outstanding for replica in replicas))
        else:
            load = sum(replica.snapshot().kv_blocks / replica.engine.usable_blocks for replica in replicas)
        ratio = load / max(current, 1) / spec.target
        wanted = current if abs(ratio - 1) <= spec.tolerance else ceil(current * ratio)
        return min(max(wanted, spec.min_replicas), spec.max_replicas)

    def _steadied(self, desired: int) -> int:
        now_ns = self._fleet.cluster.now_ns
        self._wanted.append((now_ns, desired))
        while self._wanted[0][0] < now_ns - self._spec.scale_down_window_s * NS_PER_S:
            self._wanted.popleft()
        return max(wanted for _, wanted in self._wanted)

    def _dismiss(self, place: Place) -> None:
        """Its replica drains, and its GPUs go; one that has not started goes at once."""
        if place.replica is None:
            self._fleet.release(place)
            return

        def release() -> None:
            self._draining.remove(place)
            self._fleet.release(place)

        self._draining.append(place)
        self._fleet.drain(place, release)
