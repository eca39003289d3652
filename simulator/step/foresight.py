"""What is known beforehand of sequences that decode: when each will end, and in which steps it emits."""

from __future__ import annotations

from heapq import heappop, heappush

from simulator.engine import EngineConfig
from simulator.step.decode import DecodeBatch
from simulator.step.sequence import NEVER, Sequence
from simulator.step.steplog import StepLog


class Foresight:
    """The part of a scheduler that keeps these books; no decision is made here."""

    def __init__(self, engine: EngineConfig, log: StepLog) -> None:
        self.engine = engine
        self.log = log
        self.decode = DecodeBatch(engine.block_size)
        self._finishing: dict[int, list[Sequence]] = {}
        self._finish_steps: list[int] = []

    def _start_decoding(self, sequence: Sequence, step: int) -> None:
        """`step` holds the last chunk: its result is a token, and every step after it adds one."""
        sequence.intercept = sequence.num_tokens - step
        self._open_segment(sequence, step)
        self._foresee_finish(sequence)
        self.decode.join(sequence)

    def _foresee_finish(self, sequence: Sequence) -> None:
        step = sequence.output_tokens - 1 + sequence.prompt_tokens - sequence.intercept
        sequence.finish_step = step
        if step in self._finishing:
            self._finishing[step].append(sequence)
        else:
            self._finishing[step] = [sequence]
            heappush(self._finish_steps, step)

    def _forget_finish(self, sequence: Sequence) -> None:
        if sequence.finish_step != NEVER:
            self._finishing[sequence.finish_step].remove(sequence)
            sequence.finish_step = NEVER

    def _open_segment(self, sequence: Sequence, step: int) -> None:
        sequence.segment_token, sequence.segment_step = sequence.emitted_at(step), step

    def _close_segment(self, sequence: Sequence, last_step: int) -> None:
        if sequence.segment_step != NEVER and last_step >= sequence.segment_step:
            self.log.add_segment(sequence.row, sequence.segment_token, sequence.segment_step, last_step)
        sequence.segment_step = NEVER

    def _next_finish(self) -> int:
        steps = self._finish_steps
        while not self._finishing.get(steps[0]):
            self._finishing.pop(heappop(steps), None)
        return steps[0]
