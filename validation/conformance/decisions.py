"""A step's decisions in a form that both schedulers can be asked for, and the simulator's answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from itertools import takewhile
from typing import NamedTuple

import numpy as np

from simulator.drafts.chunklog import ChunkLog
from simulator.drafts.verify import VerifyScheduler
from simulator.drafts.verifyplan import VerifyPlan
from simulator.prefix.content import Contents, PromptContent
from simulator.scheduler import Scheduler
from simulator.step.sequence import NEVER, Sequence
from simulator.step.steplog import StepLog
from simulator.step.stepplan import StepPlan
from validation.conformance.cases import Case, Inbox


class Decision(NamedTuple):
    """What one call of `schedule()` decided, and what it left behind. Requests are rows of the case."""

    finished: tuple[int, ...]
    """Whose last results came in since the call before, sorted."""
    tokens: tuple[tuple[int, int], ...]
    """(request, tokens) of all that run in the step."""
    preempted: tuple[int, ...]
    """In the order of their preemption."""
    admitted: tuple[int, ...]
    """In the order of their admission."""
    running: tuple[int, ...]
    """The running list, in its order; the following two are in this order, too."""
    computed_tokens: tuple[int, ...]
    blocks: tuple[int, ...]
    """Held by each."""
    free_blocks: int
    waiting: int
    found: int = 0
    """With prefix caching: blocks that the request `probed` would find of its prompt now."""


PROBE_STEPS = 3
"""Every so many steps it is asked what a request would find: seldom enough that what is put off until asked stays put off."""


def probed(case: Case, step: int, finished: Container[int]) -> int | None:
    """The row of the request that is asked for at this step; all take their turns, but nobody asks for an answer not given yet."""
    if not case.engine.enable_prefix_caching or step % PROBE_STEPS:
        return None
    row = step // PROBE_STEPS % len(case.arrivals)
    follows = case.arrivals[row].follows
    return row if follows is None or follows in finished else None


def shared_heads(case: Case) -> list[int]:
    """Of each request, the blocks that others may have, too: what it has alone, it finds itself only, and no probe asks for that."""
    times = Counter(content_id for a in case.arrivals for content_id in (*(i for i, _ in a.segments), a.answer_id))
    heads = (takewhile(lambda segment: times[segment[0]] > 1, a.segments) for a in case.arrivals)
    return [sum(tokens for _, tokens in head) // case.engine.block_size for head in heads]


def simulated(case: Case) -> list[Decision]:
    """The decisions of `simulator.scheduler`, in order."""
    engine = case.engine
    scheduler = Scheduler(engine, StepLog()) if case.drafting is None else VerifyScheduler(engine, ChunkLog(), case.drafting)
    made, asked, inbox = sequences(case), sequences(case), Inbox(case)
    done_rows: set[int] = set()
    decisions: list[Decision] = []
    finished: list[int] = []
    before: dict[int, int] = {}
    handled = 0
    while True:
        for due in inbox.due(handled, done_rows):
            scheduler.add(made[due])
        while len(scheduler.in_flight) < engine.depth and scheduler.has_requests:
            plan = scheduler.schedule()
            scheduler.check_blocks()
            computed = {s.row: _computed_tokens(s, plan.step, case.drafting is not None) for s in scheduler.running}
            row = probed(case, len(decisions), done_rows)
            found = 0 if row is None else len(scheduler.pool.lookup(asked[row]).blocks)
            decisions.append(_decision(scheduler, plan, tuple(sorted(finished)), before, computed)._replace(found=found))
            before = computed
            finished.clear()
        if scheduler.in_flight:
            plan, done = scheduler.commit(1)
            handled += plan.tokens > 0
            finished += [sequence.row for sequence in done]
            done_rows.update(finished)
        elif (waited := inbox.next_handled(done_rows)) is not None:
            handled = waited
        else:
            return decisions


def content(case: Case) -> PromptContent:
    """What the prompts of a case have in common."""
    return PromptContent.build([list(a.segments) for a in case.arrivals], np.array([a.answer_id for a in case.arrivals]))


def sequences(case: Case) -> list[Sequence]:
    """The requests of a case as the simulator's scheduler takes them."""
    contents = Contents(content(case))
    made = []
    for row, arrival in enumerate(case.arrivals):
        sequence = Sequence(row, arrival.prompt_tokens, arrival.output_tokens, arrival.max_tokens, arrival.priority, arrival_ns=row)
        sequence.content = contents.of(row)
        made.append(sequence)
    return made


def _decision(
    scheduler: Scheduler, plan: StepPlan, finished: tuple[int, ...], before: dict[int, int], computed: dict[int, int]
) -> Decision:
    admitted = tuple(s.row for s in plan.admitted)
    # The simulator doesn't write down who decodes; it shows in how far each has come. Who is admitted may start with cached tokens.
    start = before | {s.row: end - n for s, n, end in plan.chunks if s.row in admitted}
    tokens = ((row, n - start.get(row, 0)) for row, n in computed.items())
    if isinstance(plan, VerifyPlan):
        tokens = ((row.sequence.row, row.tokens) for row in plan.rows.values())
    size = scheduler.engine.block_size
    return Decision(
        finished=finished,
        tokens=tuple((row, n) for row, n in tokens if n),
        preempted=tuple(s.row for s in plan.preempted),
        admitted=admitted,
        running=tuple(computed),
        computed_tokens=tuple(computed.values()),
        blocks=tuple(s.blocks_at(plan.step, size) if s.decoding else s.blocks for s in scheduler.running),
        free_blocks=scheduler.pool.free_blocks,
        waiting=len(scheduler.waiting),
    )


def _computed_tokens(sequence: Sequence, step: int, speculates: bool) -> int:
    """Positions computed once `step` is done, of a running sequence."""
    if sequence.decoding:
        return sequence.intercept + step
    if speculates:
        return sequence.num_computed_tokens
    if sequence.finish_step == NEVER:
        return sequence.num_computed_tokens
    # Its last token is on its way, and is never computed.
    return sequence.num_tokens - 1
