"""Admission by predicted growth of the KV cache: a request waits while it is expected to crowd out others later."""

from __future__ import annotations

from simulator.engine import EngineConfig
from simulator.kv import blocks_for
from simulator.step.sequence import Sequence


class PredictedKv:
    """Admits a request if the blocks that it and all running ones are expected to hold in the end fit into the pool.

    A forecast, not a reservation: nothing is set aside, and a prediction that is passed counts double from then on. So within a
    stretch of decodes the forecast never falls, and who is held back stays held back. An empty engine takes anyone.
    """

    def __init__(self, engine: EngineConfig, overcommit: float) -> None:
        self._block_size = engine.block_size
        self._most_blocks = int(overcommit * engine.usable_blocks)

    def admits(self, sequence: Sequence, running: list[Sequence], step: int) -> bool:
        """Whether `sequence` may join; `step` was scheduled last."""
        if not running:
            return True
        return self._final_blocks(sequence, step) + sum(self._final_blocks(s, step) for s in running) <= self._most_blocks

    def _final_blocks(self, sequence: Sequence, step: int) -> int:
        return blocks_for(sequence.prompt_tokens + sequence.expected_tokens(step), self._block_size)
