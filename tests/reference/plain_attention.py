"""How long multiprocessors wait for one another in the attention of a step, piece by piece."""

from __future__ import annotations

from simulator.artifacts.attention import MOST_SPLITS, SHARES, Attention
from tests.reference.plain_request import Request, Step


class PlainAttention:
    """Looks at the decodes of a batch whenever it is not the batch before, but not again before a quarter as many steps as it has decodes.

    A batch that stays is looked at again once its contexts have grown by a block. `looks` counts them, `again` those of them, `spared` the
    batches that came too early.
    """

    def __init__(self, attention: Attention | None, *, verifies: bool) -> None:
        self.attention, self.verifies = attention, verifies
        self.last: object = None
        self.due = self.stale = 0
        self.share = 0
        self.looks = self.again = self.spared = 0

    def idle_tokens(self, index: int, step: Step, running: list[Request]) -> int:
        """Of the step with this number, which is about to be launched."""
        if self.attention is None:
            return 0
        scheduled = {row.request for row in step.rows}
        decodes = [r for r in running if not r.is_prefill_chunk and (r in scheduled or self._goes_on(r))]
        # Who gets a token in every step stays on a line, who gets none falls back by one. With drafts there are no lines.
        lines = [(r.row, r.num_computed_tokens - index) for r in decodes]
        batch = [(r.row, r.preemptions, r.is_prefill_chunk) for r in running] if self.verifies else lines
        changed, self.last = batch != self.last, batch
        if index >= (self.due if changed else self.stale):
            contexts = [r.num_tokens for r in decodes if r in scheduled] if self.verifies else [r.num_computed_tokens for r in decodes]
            self.share = idle_share(self.attention, contexts)
            self.due = index + len(contexts) // 4
            self.stale = max(index + self.attention.block_tokens, self.due)
            self.looks += 1
            self.again += not changed
        elif changed:
            self.spared += 1
        return sum(row.end for row in step.rows if not row.prefill) * self.share // SHARES

    def saved_tokens(self, again: int) -> int:
        """Of tokens that are read a further time."""
        return 0 if self.attention is None else int(again * (1.0 - self.attention.shared_read))

    @staticmethod
    def _goes_on(request: Request) -> bool:
        """Whether more than the tokens in flight will come."""
        return request.num_output_tokens + request.num_output_placeholders < request.output_tokens


def idle_share(attention: Attention, contexts: list[int]) -> int:
    """Every piece by itself goes to the multiprocessor that has least to do."""
    lengths = [-(-context // attention.block_tokens) for context in contexts]
    work = sum(lengths) * attention.kv_heads
    if work == 0:
        return 0
    fair = -(-11 * work // (10 * attention.multiprocessors))
    busy = [0] * attention.multiprocessors
    for length in lengths:
        splits = min(-(-length // fair), MOST_SPLITS)
        for _ in range(splits * attention.kv_heads):
            busy[busy.index(min(busy))] += -(-length // splits)
    return SHARES * (max(busy) * len(busy) - work) // work
