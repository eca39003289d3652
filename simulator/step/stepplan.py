"""The batch of one step."""

from __future__ import annotations

from simulator.artifacts.attention import SHARES
from simulator.engine import EngineConfig
from simulator.features import StepFeatures
from simulator.step.sequence import NEVER, Sequence


class StepPlan:
    """The batch of one step, fixed when it was scheduled."""

    __slots__ = (
        "admitted",
        "chunks",
        "completing",
        "decode_seqs",
        "epoch",
        "gpu_end_ns",
        "idle_share",
        "intercept_max",
        "intercept_sum",
        "preempted",
        "prefill_tokens",
        "saved_tokens",
        "step",
        "verify_tokens",
    )

    def __init__(self, step: int) -> None:
        self.step = step
        self.chunks: list[tuple[Sequence, int, int]] = []
        """(sequence, tokens, end position) of each piece of a prompt."""
        self.completing: list[Sequence] = []
        """Sequences whose last chunk is in the step: they emit a token."""
        self.admitted: list[Sequence] = []
        self.preempted: list[Sequence] = []
        self.prefill_tokens = 0
        self.decode_seqs = 0
        self.verify_tokens = 0
        self.intercept_sum = 0
        self.intercept_max = 0
        self.epoch = NEVER
        """Epoch of the decode batch if the step is a steady decode, which the next step would repeat; else NEVER."""
        self.gpu_end_ns = 0
        self.idle_share = 0
        """Of its decodes' contexts (`step/idle.py`)."""
        self.saved_tokens = 0
        """Of those, what is saved since some are read several times."""

    @property
    def tokens(self) -> int:
        """Tokens of the batch before padding."""
        return self.decode_seqs + self.prefill_tokens

    @property
    def context_tokens(self) -> int:
        """Sum of its decodes' contexts."""
        return self.intercept_sum + self.decode_seqs * self.step

    def decoding_contexts(self, running: list[Sequence]) -> list[int]:
        """Tokens of the decodes, of those that begin to decode too, in the order of `running`."""
        return [sequence.intercept + self.step for sequence in running if sequence.decoding]

    def features(self, engine: EngineConfig) -> StepFeatures:
        """The composition of the step, for the cost model."""
        decodes, step = self.decode_seqs, self.step
        context, longest = self.context_tokens, self.intercept_max + step
        idle, read = context * self.idle_share // SHARES, context - self.saved_tokens
        if not self.chunks:
            padded, mode = engine.graphs.pad(decodes, True)
            return StepFeatures(0, 0, 0, 0, decodes, read, longest, 0, padded, mode, idle)
        tokens = self.prefill_tokens
        padded, mode = engine.graphs.pad(tokens + decodes, tokens == len(self.chunks))
        ends = sum(end for _, _, end in self.chunks)
        attention = sum(n * end - n * (n - 1) // 2 for _, n, end in self.chunks)
        longest = longest if decodes else 0
        return StepFeatures(len(self.chunks), tokens, ends, attention, decodes, read, longest, 0, padded, mode, idle)
