"""Failures, drains and rolling deploys: what happens to nodes while they serve."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from simulator.fleet.fleet import Fleet, Place
from simulator.workload.base import NS_PER_S, Spec, stream


class RandomFailures(Spec):
    """Every node fails by itself: up for an exponential time, then down for another, or for a constant one."""

    mtbf_s: float = Field(gt=0)
    """Mean time from being up again to the next failure, of one node."""
    mttr_s: float = Field(gt=0)
    """Mean time until the node is there again; its engines start then."""
    repair: Literal["exponential", "constant"] = "exponential"


class Failure(Spec):
    """One failure of a node, with all that its replicas were answering."""

    kind: Literal["failure"] = "failure"
    at_s: float = Field(gt=0)
    node: int = Field(0, ge=0)
    down_s: float = Field(gt=0)


class Drain(Spec):
    """A node gets no new requests, finishes those it has, is away for `down_s`, and starts again."""

    kind: Literal["drain"] = "drain"
    at_s: float = Field(gt=0)
    node: int = Field(0, ge=0)
    down_s: float = Field(gt=0)


class RollingDeploy(Spec):
    """Every replica is drained and started anew, `at_once` at a time."""

    kind: Literal["rolling_deploy"] = "rolling_deploy"
    at_s: float = Field(gt=0)
    at_once: int = Field(1, ge=1)


Event = Annotated[Failure | Drain | RollingDeploy, Field(discriminator="kind")]


class Outages(Spec):
    """What goes wrong, or is meant to. A node is eight GPUs, filled with replicas in order."""

    engine_start_s: float | None = Field(None, ge=0)
    """From an engine's start to its first request; null: as measured, without the time to get the weights."""
    random: RandomFailures | None = None
    events: tuple[Event, ...] = ()

    def describe(self) -> str:
        """One line for a report."""
        parts = []
        if self.random is not None:
            parts.append(f"nodes fail every {self.random.mtbf_s:,.0f} s for {self.random.mttr_s:,.0f} s on average")
        parts += [f"{event.kind.replace('_', ' ')} at {event.at_s:g} s" for event in self.events]
        return f"{', '.join(parts) or 'no outages'}"


def happen(fleet: Fleet, outages: Outages) -> None:
    """Lets it all happen to the fleet."""
    start_ns = round((outages.engine_start_s or 0) * NS_PER_S)
    for event in outages.events:
        at_ns = round(event.at_s * NS_PER_S)
        if isinstance(event, RollingDeploy):
            fleet.cluster.at(at_ns, partial(_deploy, fleet, event.at_once, start_ns))
        else:
            action = _fail if isinstance(event, Failure) else _drain
            fleet.cluster.at(at_ns, partial(action, fleet, event.node, start_ns, round(event.down_s * NS_PER_S)))
    if outages.random is not None:
        for node in range(fleet.nodes):
            _fail_now_and_then(fleet, outages.random, node, start_ns)


def _fail(fleet: Fleet, node: int, start_ns: int, down_ns: int) -> None:
    for place in fleet.on_node(node):
        fleet.fail(place)
        fleet.start(place, down_ns + start_ns)


def _drain(fleet: Fleet, node: int, start_ns: int, down_ns: int) -> None:
    for place in fleet.on_node(node):
        fleet.drain(place, partial(fleet.start, place, down_ns + start_ns))


def _deploy(fleet: Fleet, at_once: int, start_ns: int) -> None:
    """The next replica's turn comes when one of those before it serves again."""
    places = iter([place for place in fleet.places if place.replica is not None])

    def next_turn() -> None:
        # What is down when its turn comes will start as new as the others.
        place = next((place for place in places if place.replica in fleet.cluster.serving), None)
        if place is not None:
            fleet.drain(place, partial(renew, place))

    def renew(place: Place) -> None:
        fleet.start(place, start_ns)
        # Just after it serves, so that the service never lacks one more than `at_once`.
        fleet.cluster.at(fleet.cluster.now_ns + max(start_ns, 1) + 1, next_turn)

    for _ in range(at_once):
        next_turn()


def _fail_now_and_then(fleet: Fleet, spec: RandomFailures, node: int, start_ns: int) -> None:
    rng = stream(fleet.seed, f"outages/node{node}")

    def wait_for_failure() -> None:
        fleet.cluster.at(fleet.cluster.now_ns + _exponential_ns(rng, spec.mtbf_s), break_down)

    def break_down() -> None:
        down_ns = round(spec.mttr_s * NS_PER_S) if spec.repair == "constant" else _exponential_ns(rng, spec.mttr_s)
        _fail(fleet, node, start_ns, down_ns)
        fleet.cluster.at(fleet.cluster.now_ns + down_ns, wait_for_failure)

    wait_for_failure()


def _exponential_ns(rng: np.random.Generator, mean_s: float) -> int:
    return max(round(float(rng.exponential(mean_s)) * NS_PER_S), 1)
