"""Who makes room when blocks run out: rules that choose one of the running requests. A later row decides between equals."""

from __future__ import annotations

from typing import Protocol

from simulator.engine import EngineConfig
from simulator.policies.policy import Policy
from simulator.step.sequence import Sequence


class VictimRule(Protocol):
    """Chooses who is preempted."""

    def place(self, running: list[Sequence], step: int) -> int:
        """The victim's place in the running list; `step` was scheduled last."""


class LastIn:
    """vLLM's first come, first served: the last in line."""

    def place(self, running: list[Sequence], step: int) -> int:
        del step
        return len(running) - 1


class LowestPriority:
    """vLLM's `priority`: the one with the largest (priority, arrival)."""

    def place(self, running: list[Sequence], step: int) -> int:
        del step
        # vLLM's arrival times are readings of a clock, no two alike: of those sent at one instant, the later row came later.
        return running.index(max(running, key=lambda s: (s.priority, s.arrival_ns, s.row)))


class LongestRemaining:
    """Who is expected to need its blocks the longest."""

    def place(self, running: list[Sequence], step: int) -> int:
        return running.index(max(running, key=lambda s: (s.predicted_remaining(step), s.row)))


class MostBlocks:
    """Who has the most blocks: one victim makes room for long. The first in line is spared, or else nobody might ever get on."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size

    def place(self, running: list[Sequence], step: int) -> int:
        others = running[1:] or running
        return running.index(max(others, key=lambda s: (s.held_blocks(step, self._block_size), s.row)))


class FewestBlocks:
    """Who has the fewest blocks: the least progress is lost."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size

    def place(self, running: list[Sequence], step: int) -> int:
        return running.index(min(running, key=lambda s: (s.held_blocks(step, self._block_size), -s.row)))


def make_victim_rule(engine: EngineConfig, policy: Policy) -> VictimRule:
    """The rule that these options name."""
    match policy.preemption:
        case "longest_remaining":
            return LongestRemaining()
        case "most_blocks":
            return MostBlocks(engine.block_size)
        case "fewest_blocks":
            return FewestBlocks(engine.block_size)
    return LastIn() if engine.scheduling_policy == "fcfs" else LowestPriority()
