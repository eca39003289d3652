"""vLLM's own balancer of data-parallel engines."""

from __future__ import annotations

from collections.abc import Sequence as Replicas

from simulator.routers.base import Ask, Load

NS_PER_MS = 1_000_000
WAITING_WEIGHT = 4
UNCHANGED_INTERVALS = 50
"""Counts that have not changed are told again after so many intervals (5 s)."""


class VllmDataParallel:
    """The engine with the smallest 4 × waiting + running, by counts that are up to 100 ms old.

    Between two tellings the balancer adds what it sent since, as waiting; the counts told next replace that. The scan begins one
    engine further with every request, which decides between equals.

    Source: vLLM 0.26 `v1/engine/core_client.py` `DPLBAsyncMPClient.get_core_engine_for_request` with one API server,
    `v1/engine/coordinator.py` `DPCoordinatorProc` (`min_stats_update_interval_ms` 100). Left out: that the coordinator holds back
    an engine's latest counts until all have told theirs of the same step.
    """

    every_ns = 100 * NS_PER_MS

    def __init__(self, seed: int) -> None:
        del seed
        self._start = 0
        self._told: list[tuple[int, int]] = []
        self._unchanged = 0
        self._scores: list[int] = []

    def learn(self, replicas: Replicas[Load]) -> None:
        told = [replica.request_counts() for replica in replicas]
        self._unchanged += 1
        if told == self._told and self._unchanged < UNCHANGED_INTERVALS:
            return
        self._told, self._unchanged = told, 0
        self._scores = [WAITING_WEIGHT * waiting + running for waiting, running in told]

    def route(self, replicas: Replicas[Load], ask: Ask) -> int:
        del ask
        num = len(replicas)
        scores = self._scores
        scores += [0] * (num - len(scores))
        place = min(((self._start + i) % num for i in range(num)), key=scores.__getitem__)
        scores[place] += WAITING_WEIGHT
        self._start = (self._start + 1) % num
        return place
