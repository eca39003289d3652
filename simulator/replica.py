"""A SimPy process: one engine that schedules, runs and commits steps."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from simulator.artifacts.attention import SHARES
from simulator.cost import CostModel
from simulator.drafts.chunklog import ChunkLog
from simulator.drafts.verify import VerifyScheduler
from simulator.engine import EngineConfig
from simulator.features import StepFeatures
from simulator.policies.policy import VLLM, Policy
from simulator.scheduler import Scheduler
from simulator.snapshot import Snapshot
from simulator.speculation import Drafting
from simulator.step import occupancy
from simulator.step.chance import chance
from simulator.step.clock import EngineClock, Launch, steady_ends
from simulator.step.events import STEP_END, Instant
from simulator.step.idle import IdleShare
from simulator.step.sequence import NEVER, Sequence
from simulator.step.steplog import StepLog
from simulator.step.stepplan import StepPlan

Int64 = NDArray[np.int64]

SHORTEST_REACH, LONGEST_REACH = 32, 4096
"""Steps evaluated at once: twice as many as the last stretch had, for what an arrival cuts off is wasted. No result depends on it."""

_UPTO = np.arange(LONGEST_REACH, dtype=np.int64)


class Replica:
    """One engine. `submit` hands it requests, `on_finish` is told of every one that finished.

    Events at one instant are ordered by priority, so results never depend on which was scheduled first:
    arrivals come before step ends, step ends come in the order of the replicas.
    """

    def __init__(
        self,
        env: simpy.Environment,
        index: int,
        engine: EngineConfig,
        cost: CostModel,
        stride: int | None,
        on_finish: Callable[[Sequence], None],
        drafting: Drafting | None = None,
        policy: Policy = VLLM,
        seed: int = 0,
    ) -> None:
        overheads = cost.artifact.overheads
        self.env = env
        self.index = index
        self.engine = engine
        self.cost = cost
        self.stride = LONGEST_REACH if stride is None else min(stride, LONGEST_REACH)
        self.log: StepLog
        self.scheduler: Scheduler
        if drafting is None:
            self.log = StepLog(self._regenerate)
            self.scheduler = Scheduler(engine, self.log, policy)
        else:
            self.log = ChunkLog()
            self.scheduler = VerifyScheduler(engine, self.log, drafting, policy)
        self.clock = EngineClock(overheads.schedule_ns)
        self._seed = seed
        self._idle_share = None if cost.artifact.attention is None else IdleShare(cost.artifact.attention)
        self.outstanding = 0
        """Requests routed here and not finished."""
        self.overheads = overheads
        self.egress_ns = 0
        """From the end of the step that was committed last to its tokens at their clients."""
        self.busy_ns = 0
        self.num_events = 0
        self._ingress_ns = overheads.ingress_ns
        self._delivered_ns = 0
        self._on_finish = on_finish
        self._inbox: deque[Sequence] = deque()
        self._aborts: deque[tuple[int, Sequence]] = deque()
        """(when the engine sees it, whose client has left)."""
        self._ends: list[int] | Int64 = []
        self._gpu_ends: list[int] | Int64 = []
        self._gpu_ns = _UPTO[:0]
        self._cut = 0
        self._reach = SHORTEST_REACH
        self._launching = Launch(0, 0)
        self._timer = simpy.Event(env)
        self._idle = True
        self._failed = False
        env.process(self._run())

    @property
    def now_ns(self) -> int:
        """The simulation clock."""
        return int(self.env.now)

    # -- from outside -----------------------------------------------------------------------------------------------

    def submit(self, sequence: Sequence) -> None:
        """A client's request was routed here at this instant; the engine sees it `ingress_ns` later."""
        sequence.visible_from_ns = self.now_ns + self._ingress_ns
        # The scheduler does so, too, but routers look before it does.
        sequence.max_tokens = min(sequence.max_tokens, self.engine.max_model_len - sequence.prompt_tokens)
        self.outstanding += 1
        self._inbox.append(sequence)
        if self._idle:
            self._idle = False
            self._wait_until(sequence.visible_from_ns)
        elif self._cut > 1 and self.scheduler.heeds_arrivals():
            self._cut_stretch(sequence.visible_from_ns)

    def abort(self, sequence: Sequence) -> None:
        """The client of an unfinished request left at this instant; the engine sees it `ingress_ns` later.

        It lets the request go before it takes in the next results (vLLM 0.26 `v1/engine/core.py` `_process_aborts_queue`).
        """
        seen_ns = self.now_ns + self._ingress_ns
        self.outstanding -= 1
        self._aborts.append((seen_ns, sequence))
        if self._cut > 1:
            self._cut_stretch(seen_ns)

    def sent(self, sequence: Sequence) -> None:
        """What a finished request had computed was sent to another replica: its blocks are free from now on."""
        self.scheduler.pool.sent(sequence)
        if self._cut == 0 and self.scheduler.in_flight:  # it rests, for want of them
            self._idle = False
            self._wait_until(self.now_ns)

    def _cut_stretch(self, seen_ns: int) -> None:
        """The stretch under way ends with the step in which the engine sees something new."""
        cut = self._steps_until(seen_ns)
        if cut < self._cut:
            self._cut = cut
            self._wait_until(int(self._ends[cut - 1]))

    def snapshot(self) -> Snapshot:
        """What an observer sees now, within a stretch as well; step ends of this instant included."""
        if self._failed:
            return Snapshot(0, 0, 0, 0)
        scheduler = self.scheduler
        held = scheduler.pool.held_blocks
        if passed := self._passed(bisect_right):
            held += scheduler.blocks_ahead(passed)
        tokens = scheduler.in_flight[0].tokens if scheduler.in_flight else 0
        return Snapshot(held, len(scheduler.running), len(scheduler.waiting) + len(self._inbox), tokens)

    def fail(self) -> list[Sequence]:
        """The engine is gone before the step ends of this instant, with its memory. Returns the requests that it was answering."""
        self.close()
        self._failed = True
        self.outstanding = 0
        self._timer.callbacks = []  # its process sleeps for ever
        waiting = self.scheduler.waiting
        lost = [*self.scheduler.running, *(waiting.pop() for _ in range(len(waiting))), *self._inbox]
        left = {sequence.row for _, sequence in self._aborts}
        return [sequence for sequence in lost if sequence.row not in left]

    # What routers see (`routers.Load`). Requests are sent before the step ends of their instant.

    def context_tokens(self) -> int:
        """Prompt and output tokens so far of the requests routed here and not finished."""
        return occupancy.context_tokens(self.scheduler, self._inbox, self._passed(bisect_left))

    def predicted_tokens(self) -> int:
        """Output tokens that those requests are expected to emit from now on, by the predictor."""
        return occupancy.predicted_tokens(self.scheduler, self._inbox, self._passed(bisect_left))

    def request_counts(self) -> tuple[int, int]:
        """(waiting, running) as the engine counts them, step ends of this instant included."""
        passed = self._passed(bisect_right)
        return occupancy.request_counts(self.scheduler, self._inbox, int(self._ends[passed - 1]) if passed else NEVER)

    def _passed(self, bisect: Callable[..., int]) -> int:
        """Steps of the stretch that have ended by now; its last one is not looked at here but committed."""
        return min(bisect(self._ends, self.now_ns, 0, self._cut), self._cut - 1) if self._cut > 1 else 0

    def close(self) -> None:
        """Ends the run before the step ends of this instant; the steps that ended within a stretch count."""
        if self._failed:
            return
        passed = bisect_left(self._ends, self.now_ns, 0, self._cut) if self._cut > 1 else 0
        if passed:
            self._log_steps(self.scheduler.in_flight[0], passed)
            self.scheduler.repeat(passed)
            self.busy_ns += int(self._gpu_ns[:passed].sum())
        self.scheduler.close_segments()

    # -- the engine's loop ------------------------------------------------------------------------------------------

    def _run(self) -> Generator[simpy.Event, Any, None]:
        scheduler, in_flight, depth = self.scheduler, self.scheduler.in_flight, self.engine.depth
        while True:
            self._cut = 0
            now_ns = self.now_ns
            self._drain_inbox(now_ns)
            while len(in_flight) < depth and scheduler.has_requests:
                self._launch(scheduler.schedule(), now_ns)
            if not in_flight or (scheduler.pool.sending and self._is_starved()):
                self._rest()
                yield self._timer
                if not in_flight:
                    continue
                self._cut, self._ends, self._gpu_ends = 1, [self.now_ns], [self.now_ns]
            else:
                self._run_stretch(now_ns)
                self._wait_until(int(self._ends[self._cut - 1]))
                yield self._timer
            self._commit()

    def _is_starved(self) -> bool:
        """Whether nothing can run before blocks that are being sent are free again."""
        return self.scheduler.has_requests and not any(plan.tokens or plan.preempted for plan in self.scheduler.in_flight)

    def _drain_inbox(self, now_ns: int) -> None:
        inbox = self._inbox
        while inbox and inbox[0].visible_from_ns <= now_ns:
            self.scheduler.add(inbox.popleft())

    def _rest(self) -> None:
        """Nothing to do: sleep until a request is seen."""
        self._timer = simpy.Event(self.env)
        if self._inbox:
            self._wait_until(self._inbox[0].visible_from_ns)
        else:
            self._idle = True

    def _wait_until(self, at_ns: int) -> None:
        """The process wakes at `at_ns`; if it waits already, it now waits for that instant instead."""
        timer = Instant(self.env, at_ns, STEP_END + self.index)
        # Handing over the callbacks leaves the old timer to expire unheard.
        timer.callbacks, self._timer.callbacks = self._timer.callbacks or [], []
        self._timer = timer

    def _launch(self, plan: StepPlan, now_ns: int) -> None:
        for sequence in plan.admitted:
            if sequence.scheduled_ns == NEVER:
                sequence.scheduled_ns = now_ns
        if plan.tokens == 0:
            # vLLM queues a plan without work, too; it is done at once.
            plan.gpu_end_ns = now_ns
            return
        if self._idle_share is not None:
            plan.idle_share = self._idle_share.of(plan, self.scheduler.running, self.scheduler.decode.epoch)
        attention, shared = self.cost.artifact.attention, self.scheduler.pool.shared_blocks
        if shared and attention is not None and plan.decode_seqs:
            # Those that decode are taken to hold their part of them.
            of_decodes = shared * self.engine.block_size * plan.decode_seqs // len(self.scheduler.running)
            plan.saved_tokens = attention.saved_tokens(min(of_decodes, plan.context_tokens))
        features = plan.features(self.engine)
        gpu_ns = self.cost.gpu_ns(features)
        luck = chance(self._seed, self.index, plan.step) if plan.chunks else None
        self._launching = self.cost.launch(features, luck)
        self.busy_ns += gpu_ns
        plan.gpu_end_ns = self.clock.launch(now_ns, gpu_ns, self._launching)

    def _run_stretch(self, now_ns: int) -> None:
        """Finds out when the steps end that nothing but an arrival can disturb."""
        plans, scheduler = self.scheduler.in_flight, self.scheduler
        first_ns = max(plans[0].gpu_end_ns, self.clock.cpu_free_ns, now_ns)
        plan = plans[-1]
        limit = min(self._reach, self.stride)
        if self._idle_share is not None:
            limit = self._idle_share.steps_alike(plans, limit)
        if plans[0].saved_tokens != plan.saved_tokens:
            limit = 1
        steps = 1 if limit == 1 else scheduler.stable_steps(limit)
        self._cut, self._ends, self._gpu_ends = 1, [first_ns], [plan.gpu_end_ns]
        if steps == 1:
            return
        if isinstance(scheduler, VerifyScheduler):
            gpu_ns = self._verifying_gpu_ns(steps - 1, plan, *scheduler.contexts_ahead(steps - 1))
        else:
            batch = plan.decode_seqs, plan.intercept_sum, plan.intercept_max, plan.idle_share, plan.saved_tokens
            gpu_ns = self._steady_gpu_ns(plan.step + 1, steps - 1, *batch)
        depth, launch = self.engine.depth, self._launching
        if depth == 2 and not self.clock.keeps_up(first_ns, plan.gpu_end_ns, gpu_ns, launch):
            self._reach = SHORTEST_REACH
            return
        self._cut, self._gpu_ns = steps, gpu_ns
        self._ends, self._gpu_ends = steady_ends(depth, first_ns, plan.gpu_end_ns, gpu_ns, *self.clock.after_result(launch))
        if self._inbox and scheduler.heeds_arrivals():
            self._cut = self._steps_until(self._inbox[0].visible_from_ns)
        if self._aborts:
            self._cut = self._steps_until(self._aborts[0][0])

    def _steps_until(self, seen_ns: int) -> int:
        """Steps of the stretch up to the end at which a request that is seen from `seen_ns` on is taken in."""
        return min(bisect_left(self._ends, seen_ns, 0, self._cut) + 1, self._cut)

    def _steady_gpu_ns(
        self, first_step: int, steps: int, decode_seqs: int, intercept_sum: int, intercept_max: int, idle_share: int, saved: int
    ) -> Int64:
        upto = _UPTO[:steps]
        padded, mode = self.engine.graphs.pad(decode_seqs, True)
        context = upto * decode_seqs + (intercept_sum + decode_seqs * first_step)
        longest = upto + (intercept_max + first_step)
        idle = context * idle_share // SHARES if idle_share else 0
        gpu_ns = self.cost.gpu_ns(StepFeatures(0, 0, 0, 0, decode_seqs, context - saved, longest, 0, padded, mode, idle))
        return gpu_ns if isinstance(gpu_ns, np.ndarray) else np.full(steps, gpu_ns)

    def _verifying_gpu_ns(self, steps: int, plan: StepPlan, context: Int64, longest: Int64) -> Int64:
        padded, mode = self.engine.graphs.pad(plan.tokens, True)
        idle = context * plan.idle_share // SHARES
        batch = plan.decode_seqs, context - plan.saved_tokens, longest, plan.verify_tokens, padded, mode, idle
        gpu_ns = self.cost.gpu_ns(StepFeatures(0, 0, 0, 0, *batch))
        return gpu_ns if isinstance(gpu_ns, np.ndarray) else np.full(steps, gpu_ns)

    def _regenerate(self, first_step: int, steps: int, seqs: int, *rest: int) -> Int64:
        *batch, first_ns, next_gpu_end_ns = rest
        depth = self.engine.depth
        gpu_ns = self._steady_gpu_ns(first_step + depth, steps - 1, seqs, *batch)
        padded, mode = self.engine.graphs.pad(seqs, True)
        launch = self.cost.launch(StepFeatures(decode_seqs=seqs, padded_tokens=padded, graph_mode=mode))
        ends, _ = steady_ends(depth, first_ns, next_gpu_end_ns, gpu_ns, *self.clock.after_result(launch))
        return np.asarray(ends)

    def _log_steps(self, plan: StepPlan, steps: int) -> None:
        ends = self._ends
        if steps > 1 and isinstance(self.scheduler, VerifyScheduler):
            self._log_one_by_one(self.scheduler, steps)
            return
        batch = len(plan.chunks), plan.prefill_tokens, plan.decode_seqs, plan.intercept_sum, plan.intercept_max
        times_ns = int(ends[0]), int(self._gpu_ends[0]), int(ends[steps - 1])
        self.log.add(plan.step, steps, *batch, *times_ns, plan.verify_tokens, plan.idle_share, plan.saved_tokens)

    def _log_one_by_one(self, scheduler: VerifyScheduler, steps: int) -> None:
        """Steps that emit now more, now less follow no line: each is a row of its own."""
        plans = scheduler.in_flight
        sums, maxima = (contexts.tolist() for contexts in scheduler.contexts_ahead(steps - 1))
        for offset in range(steps):
            step = plans[0].step + offset
            if offset < len(plans):
                intercepts = plans[offset].intercept_sum, plans[offset].intercept_max
            else:
                ahead = offset - len(plans)
                intercepts = sums[ahead] - plans[0].decode_seqs * step, maxima[ahead] - step
            end_ns = int(self._ends[offset])
            last = end_ns, plans[0].verify_tokens, plans[0].idle_share, plans[0].saved_tokens
            self.log.add(step, 1, 0, 0, plans[0].decode_seqs, *intercepts, end_ns, int(self._gpu_ends[offset]), *last)

    def _commit(self) -> None:
        steps, now = self._cut, self.now_ns
        self.num_events += 1
        self._log_steps(self.scheduler.in_flight[0], steps)
        if self._aborts:
            plan, finished = self.scheduler.commit(steps, self._aborted(now))
            # Whoever finished while its abort was on the way: its client has left all the same.
            gone = {sequence.row for _, sequence in self._aborts}
            self._aborts = deque(abort for abort in self._aborts if abort[1] not in finished)
            finished = [sequence for sequence in finished if sequence.row not in gone]
        else:
            plan, finished = self.scheduler.commit(steps)
        if steps > 1:
            self._pass_steps(steps)
        # Tokens reach their clients in the order in which they were made.
        self._delivered_ns = max(self._delivered_ns, now + self.overheads.to_client_ns(len(plan.chunks) + plan.decode_seqs))
        self.egress_ns = self._delivered_ns - now
        for sequence in plan.completing:
            if sequence.first_token_ns == NEVER:
                sequence.first_token_ns, sequence.first_egress_ns = now, self.egress_ns
        for sequence in finished:
            self.outstanding -= 1
            self._on_finish(sequence)

    def _aborted(self, now_ns: int) -> list[Sequence]:
        """The requests in the scheduler whose abort is seen now."""
        found = []
        while self._aborts and self._aborts[0][0] <= now_ns:
            _, sequence = self._aborts.popleft()
            if sequence in self._inbox:
                self._inbox.remove(sequence)
            else:
                found.append(sequence)
        return found

    def _pass_steps(self, steps: int) -> None:
        """Brings the clocks to where `steps` single steps would have left them."""
        self._reach = min(max(2 * steps, SHORTEST_REACH), LONGEST_REACH)
        gpu_end_ns = int(self._gpu_ends[steps - 1])
        self.clock.passed(int(self._ends[steps - 2]), gpu_end_ns, self._launching)
        for plan in self.scheduler.in_flight:
            plan.gpu_end_ns = gpu_end_ns
        # GPU time of the steps launched on the way
        self.busy_ns += int(self._gpu_ns[: steps - 1].sum())
