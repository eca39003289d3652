"""The load of an engine as an onlooker sees it, derived when somebody looks: within a stretch nothing is kept up to date."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from simulator.scheduler import Scheduler
from simulator.step.sequence import Sequence


def context_tokens(scheduler: Scheduler, inbox: Iterable[Sequence], step: int) -> int:
    """Prompt and output tokens of the unfinished requests once `step` is planned, tokens in flight included."""
    decode = scheduler.decode
    others = (s for s in chain(scheduler.running, scheduler.waiting, inbox) if not s.decoding)
    return decode.intercept_sum + decode.count * step + sum(s.num_tokens for s in others)


def predicted_tokens(scheduler: Scheduler, inbox: Iterable[Sequence], step: int) -> int:
    """Output tokens that they are expected to emit in later steps."""
    return sum(s.predicted_remaining(step) for s in chain(scheduler.running, scheduler.waiting, inbox))


def request_counts(scheduler: Scheduler, inbox: Iterable[Sequence], seen_ns: int) -> tuple[int, int]:
    """(waiting, running) by the engine's own count, which last looked for new requests at `seen_ns`."""
    return len(scheduler.waiting) + sum(s.visible_from_ns <= seen_ns for s in inbox), len(scheduler.running)
