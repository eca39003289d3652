"""How unevenly the attention of the sequences that decode is spread, followed as the batch changes."""

from __future__ import annotations

from simulator.artifacts.attention import Attention
from simulator.step.sequence import NEVER, Sequence
from simulator.step.stepplan import StepPlan

FEWER = 4
"""A batch of n sequences is looked at every n / 4 steps at most: what it takes to look grows with n, and what one change matters falls."""


class IdleShare:
    """`Attention.idle_share` of the batch, as of the last of its changes that was looked at.

    Only when the batch changes is it looked at, never in between: so a stretch of steps costs what its single steps do.
    """

    def __init__(self, attention: Attention) -> None:
        self._attention = attention
        self._epoch = NEVER
        self._due_step = 0
        self._share = 0

    def of(self, plan: StepPlan, running: list[Sequence], epoch: int) -> int:
        """In `SHARES`ths, of the plan's decodes; `epoch` counts the changes of the batch."""
        if epoch != self._epoch:
            self._epoch = epoch
            if plan.step >= self._due_step:
                contexts = plan.decoding_contexts(running)
                self._share = self._attention.idle_share(contexts)
                self._due_step = plan.step + len(contexts) // FEWER
        return self._share
