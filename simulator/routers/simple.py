"""Routers that count requests, or nothing at all."""

from __future__ import annotations

from collections.abc import Sequence as Replicas

from simulator.routers.base import Ask, Draws, Load


class LeastRequests:
    """The replica with the fewest unfinished requests; the first of several."""

    def __init__(self, seed: int) -> None:
        del seed

    def route(self, replicas: Replicas[Load], ask: Ask) -> int:
        del ask
        loads = [replica.outstanding for replica in replicas]
        return loads.index(min(loads))


class RoundRobin:
    """The replicas in turn."""

    def __init__(self, seed: int) -> None:
        del seed
        self._next = -1

    def route(self, replicas: Replicas[Load], ask: Ask) -> int:
        del ask
        self._next = (self._next + 1) % len(replicas)
        return self._next


class Random:
    """Any replica, with equal chances."""

    def __init__(self, seed: int) -> None:
        self._draws = Draws(seed, "router", 1)

    def route(self, replicas: Replicas[Load], ask: Ask) -> int:
        return int(self._draws[ask.row][0] * len(replicas))


class PowerOfTwo:
    """Of two replicas drawn at random the one with fewer unfinished requests (Mitzenmacher, IEEE TPDS 12(10), 2001).

    It looks at two however many there are, and two routers that do not know of each other rarely choose the same one.
    """

    def __init__(self, seed: int) -> None:
        self._draws = Draws(seed, "router/power_of_two", 2)

    def route(self, replicas: Replicas[Load], ask: Ask) -> int:
        first_draw, second_draw = self._draws[ask.row]
        first = int(first_draw * len(replicas))
        if len(replicas) == 1:
            return first
        # Any but the first, with equal chances.
        second = (first + 1 + int(second_draw * (len(replicas) - 1))) % len(replicas)
        return second if replicas[second].outstanding < replicas[first].outstanding else first
