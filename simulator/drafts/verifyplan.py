"""The batch of one step that may verify drafts, and what speculation adds to the state of a sequence."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.engine import EngineConfig
from simulator.features import StepFeatures
from simulator.speculation import Drafts
from simulator.step.sequence import NEVER, Sequence
from simulator.step.stepplan import StepPlan


class Verified:
    """What speculation adds to the state of a sequence."""

    __slots__ = ("drafts", "next", "num_output_placeholders", "prefilling", "segment", "sequence")

    def __init__(self, sequence: Sequence, drafts: Drafts) -> None:
        self.sequence = sequence
        self.drafts = drafts
        self.next = 0
        """Drafts that its next step would verify (`spec_token_ids`)."""
        self.num_output_placeholders = 0
        """Asynchronous: tokens that steps in flight emit at most."""
        self.prefilling = True
        self.segment: list[int] = []
        """Tokens emitted in each step since `Sequence.segment_step`."""


@dataclass(slots=True)
class Row:
    """One sequence in one step."""

    sequence: Sequence
    tokens: int
    drafts: int
    """Of the tokens, those to be verified."""
    prefill: bool
    emits: bool = False


class VerifyPlan(StepPlan):
    """The batch of a step that may verify drafts."""

    __slots__ = ("members", "rows")

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.rows: dict[int, Row] = {}
        """By request, in the order in which they were scheduled."""
        self.members = NEVER
        """Which batch (`DecodeBatch.epoch`) verifies all its drafts in this step; else NEVER."""

    def describe(self, context_sum: int, context_max: int) -> None:
        """Notes the contexts of the step's decodes."""
        self.intercept_sum = context_sum - self.decode_seqs * self.step
        self.intercept_max = context_max - self.step

    @property
    def tokens(self) -> int:
        """Tokens of the batch before padding."""
        return self.decode_seqs + self.verify_tokens + self.prefill_tokens

    def decoding_contexts(self, running: list[Sequence]) -> list[int]:
        """As of the results that are in."""
        rows = self.rows
        return [sequence.num_tokens for sequence in running if sequence.row in rows and rows[sequence.row].emits]

    def features(self, engine: EngineConfig) -> StepFeatures:
        """The composition of the step, for the cost model; the context of a decode counts its drafts."""
        query_len = engine.decode_query_len
        padded, mode = engine.graphs.pad(self.tokens, all(row.tokens == query_len for row in self.rows.values()))
        return super().features(engine)._replace(verify_tokens=self.verify_tokens, padded_tokens=padded, graph_mode=mode)
