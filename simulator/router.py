"""Routers: which replica gets a request. None may know how long the answer will be."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Replicas
from typing import Protocol
from zlib import crc32

import numpy as np

from simulator.errors import UserError


class Load(Protocol):
    """What a router may see of a replica."""

    outstanding: int
    """Requests routed there and not finished."""


class Router(Protocol):
    """Chooses a replica for a request; returns its index."""

    def route(self, replicas: Replicas[Load]) -> int: ...


class LeastRequests:
    """The replica with the fewest unfinished requests; the first of several."""

    def __init__(self, seed: int) -> None:
        del seed

    def route(self, replicas: Replicas[Load]) -> int:
        loads = [replica.outstanding for replica in replicas]
        return loads.index(min(loads))


class RoundRobin:
    """The replicas in turn."""

    def __init__(self, seed: int) -> None:
        del seed
        self._next = -1

    def route(self, replicas: Replicas[Load]) -> int:
        self._next = (self._next + 1) % len(replicas)
        return self._next


class Random:
    """Any replica, with equal chances."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(np.random.SeedSequence([seed, crc32(b"router")]))

    def route(self, replicas: Replicas[Load]) -> int:
        return int(self._rng.integers(len(replicas)))


ROUTERS: dict[str, Callable[[int], Router]] = {"least_requests": LeastRequests, "round_robin": RoundRobin, "random": Random}


def make_router(name: str, seed: int) -> Router:
    """The router of that name.

    Raises:
        UserError: there is none.
    """
    if name not in ROUTERS:
        raise UserError(f"router {name!r} is not known; choose one of {', '.join(sorted(ROUTERS))}")
    return ROUTERS[name](seed)
