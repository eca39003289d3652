"""The load of an engine as an onlooker sees it, derived when somebody looks: within a stretch nothing is kept up to date."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from simulator.drafts.verify import VerifyScheduler
from simulator.scheduler import Scheduler
from simulator.step.sequence import NEVER, Sequence


def context_tokens(scheduler: Scheduler, inbox: Iterable[Sequence], passed: int) -> int:
    """Prompt and output tokens of the unfinished requests, `passed` steps into a stretch, tokens in flight included.

    With drafts nobody knows how many are in flight: those whose results are in count.
    """
    if isinstance(scheduler, VerifyScheduler):
        running = sum(s.prompt_tokens for s in scheduler.running) + sum(scheduler.emitted_ahead(passed))
        return running + sum(s.num_tokens for s in chain(scheduler.waiting, inbox))
    decode, step = scheduler.decode, scheduler.step + passed
    others = (s for s in chain(scheduler.running, scheduler.waiting, inbox) if not s.decoding)
    return decode.intercept_sum + decode.count * step + sum(s.num_tokens for s in others)


def predicted_tokens(scheduler: Scheduler, inbox: Iterable[Sequence], passed: int) -> int:
    """Output tokens that they are expected to emit in later steps."""
    if isinstance(scheduler, VerifyScheduler):
        running = sum(s.remaining_after(n) for s, n in zip(scheduler.running, scheduler.emitted_ahead(passed), strict=True))
        return running + sum(s.predicted_remaining(NEVER) for s in chain(scheduler.waiting, inbox))
    return sum(s.predicted_remaining(scheduler.step + passed) for s in chain(scheduler.running, scheduler.waiting, inbox))


def request_counts(scheduler: Scheduler, inbox: Iterable[Sequence], seen_ns: int) -> tuple[int, int]:
    """(waiting, running) by the engine's own count, which last looked for new requests at `seen_ns`."""
    return len(scheduler.waiting) + sum(s.visible_from_ns <= seen_ns for s in inbox), len(scheduler.running)
