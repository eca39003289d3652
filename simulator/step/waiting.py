"""The waiting queue: first come first served, by priority, or by predicted length."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Protocol

from simulator.engine import EngineConfig
from simulator.policies.policy import Policy
from simulator.step.sequence import NEVER, Sequence

NS_PER_S = 1_000_000_000


class WaitingQueue(Protocol):
    """Source: vLLM 0.26 `v1/core/sched/request_queue.py`."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sequence]:
        """All of them, in any order."""

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

    def rank_again(self, sequence: Sequence) -> None:
        """One that was preempted has emitted more since: what was in flight then."""


class FcfsQueue(deque[Sequence]):
    """First come, first served; preempted requests go to the front."""

    add = deque.append
    put_back = deque.appendleft

    def rank_again(self, sequence: Sequence) -> None:
        """Its place is the front, however far it has come."""

    def peek(self) -> Sequence:
        return self[0]

    def pop(self) -> Sequence:  # type: ignore[override]
        return self.popleft()


class PriorityQueue:
    """Smallest (priority, arrival) first; a preempted request has no front to go to."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int, Sequence]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Sequence]:
        return (entry[-1] for entry in self._heap)

    def _rank(self, sequence: Sequence) -> float:
        return sequence.priority

    def add(self, sequence: Sequence) -> None:
        heappush(self._heap, (self._rank(sequence), sequence.arrival_ns, sequence.row, sequence))

    put_back = add

    def peek(self) -> Sequence:
        return self._heap[0][-1]

    def pop(self) -> Sequence:
        return heappop(self._heap)[-1]

    def remove(self, sequence: Sequence) -> None:
        self._heap = [entry for entry in self._heap if entry[-1] is not sequence]
        heapify(self._heap)

    def rank_again(self, sequence: Sequence) -> None:
        self.remove(sequence)
        self.add(sequence)


class ShortestFirstQueue(PriorityQueue):
    """Fewest expected output tokens first, in all or still to come; nobody who runs is preempted for it.

    Aging subtracts tokens for every second since a request was sent. As all age alike, their order never changes while they wait.
    """

    def __init__(self, remaining: bool, aging_tokens_per_s: float) -> None:
        super().__init__()
        self._remaining = remaining
        self._aging_tokens_per_s = aging_tokens_per_s

    def _rank(self, sequence: Sequence) -> float:
        # Who waits does not decode, so the step does not matter.
        tokens = sequence.predicted_remaining(NEVER) if self._remaining else sequence.expected_tokens(NEVER)
        return tokens + self._aging_tokens_per_s * sequence.arrival_ns / NS_PER_S


def make_queue(engine: EngineConfig, policy: Policy) -> WaitingQueue:
    """The queue that these options name."""
    if policy.queue != "vllm":
        return ShortestFirstQueue(policy.queue == "shortest_remaining_first", policy.aging_tokens_per_s)
    return FcfsQueue() if engine.scheduling_policy == "fcfs" else PriorityQueue()
