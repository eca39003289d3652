"""The waiting queue: first come first served, or by priority."""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush
from typing import Protocol

from simulator.sequence import Sequence


class WaitingQueue(Protocol):
    """Source: vLLM 0.26 `v1/core/sched/request_queue.py`."""

    def __len__(self) -> int: ...

    def add(self, sequence: Sequence) -> None:
        """A new request."""

    def put_back(self, sequence: Sequence) -> None:
        """A preempted request: to the front, where there is one."""

    def peek(self) -> Sequence:
        """The next one."""

    def pop(self) -> Sequence:
        """Takes the next one out."""

    def remove(self, sequence: Sequence) -> None:
        """Takes one out that finished while waiting (its last step was in flight when it was preempted)."""


class FcfsQueue(deque[Sequence]):
    """First come, first served; preempted requests go to the front."""

    add = deque.append
    put_back = deque.appendleft

    def peek(self) -> Sequence:
        return self[0]

    def pop(self) -> Sequence:  # type: ignore[override]
        return self.popleft()


class PriorityQueue:
    """Smallest (priority, arrival) first; a preempted request has no front to go to."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int, Sequence]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, sequence: Sequence) -> None:
        heappush(self._heap, (sequence.priority, sequence.arrival_ns, sequence.row, sequence))

    put_back = add

    def peek(self) -> Sequence:
        return self._heap[0][-1]

    def pop(self) -> Sequence:
        return heappop(self._heap)[-1]

    def remove(self, sequence: Sequence) -> None:
        self._heap = [entry for entry in self._heap if entry[-1] is not sequence]
        heapify(self._heap)
