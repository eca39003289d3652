"""How unevenly the attention of the sequences that decode is spread, followed as the batch changes."""

from __future__ import annotations

from collections import deque

from simulator.artifacts.attention import Attention
from simulator.step.sequence import NEVER, Sequence
from simulator.step.stepplan import StepPlan

FEWER = 4
"""A batch of n sequences is looked at every n / 4 steps at most: what it takes to look grows with n, and what one change matters falls."""


class IdleShare:
    """`Attention.idle_share` of the batch, as of when it was last looked at.

    A batch that stays the same is looked at again once all its contexts have grown by a block: one that is split from then on, or no
    longer, can make a step a tenth shorter or longer. The steps in which it is looked at do not depend on how many are evaluated at once:
    so a stretch costs what its single steps do.
    """

    def __init__(self, attention: Attention) -> None:
        self._attention = attention
        self._epoch = NEVER
        self._due_step = self._stale_step = 0
        self._share = 0

    def of(self, plan: StepPlan, running: list[Sequence], epoch: int) -> int:
        """In `SHARES`ths, of the plan's decodes; `epoch` counts the changes of the batch."""
        due_step = self._stale_step if epoch == self._epoch else self._due_step
        self._epoch = epoch
        if plan.step >= due_step:
            contexts = plan.decoding_contexts(running)
            self._share = self._attention.idle_share(contexts)
            self._due_step = plan.step + len(contexts) // FEWER
            self._stale_step = max(plan.step + self._attention.block_tokens, self._due_step)
        return self._share

    def steps_alike(self, in_flight: deque[StepPlan], limit: int) -> int:
        """Steps, at most `limit`, that a stretch of steady decodes can have, so that none launched within it would be looked at anew."""
        last = in_flight[-1]
        if any(plan.idle_share != last.idle_share for plan in in_flight):
            return 1
        return min(limit, max(self._stale_step - last.step, 1))
