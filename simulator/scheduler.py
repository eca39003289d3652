"""vLLM's scheduling rules: who runs in the next step, with how many tokens, and who is preempted.

Source: vLLM 0.26 `v1/core/sched/scheduler.py` `schedule()` and `update_from_output()`, `async_scheduler.py`,
`v1/core/kv_cache_manager.py` `allocate_slots()`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from simulator.engine import EngineConfig
from simulator.kv import BlockPool, Hit, blocks_for
from simulator.policies.admission import PredictedKv
from simulator.policies.policy import VLLM, Policy
from simulator.policies.preemption import LastIn, make_victim_rule
from simulator.prefix.cache import PrefixCache
from simulator.step.foresight import Foresight
from simulator.step.sequence import NEVER, Sequence
from simulator.step.steplog import StepLog
from simulator.step.stepplan import StepPlan
from simulator.step.waiting import FcfsQueue, make_queue


class Scheduler(Foresight):
    """One engine's scheduler. `schedule()` plans a step, `commit()` takes in the results of the oldest plan.

    Laws: free + held blocks = usable; token budget and seats are never exceeded; a plan depends on no output length
    that has not been reached yet.
    """

    def __init__(self, engine: EngineConfig, log: StepLog, policy: Policy = VLLM) -> None:
        super().__init__(engine, log)
        self.pool = BlockPool(engine.usable_blocks)
        self._caches = False
        """Whether the pool is a `PrefixCache` by now."""
        self.waiting = make_queue(engine, policy)
        self.running: list[Sequence] = []
        self.in_flight: deque[StepPlan] = deque()
        self.step = NEVER
        """Index of the last scheduled step."""
        self._prefilling = 0
        self._chunk_limit = 0
        self._victims = make_victim_rule(engine, policy)
        self._last_is_victim = isinstance(self._victims, LastIn)
        self._vllm_victims = policy.preemption == "vllm"
        self._forecast = PredictedKv(engine, policy.overcommit) if policy.admission == "predicted_kv" else None
        self._watermark_blocks = int(engine.watermark * engine.num_gpu_blocks)

    @property
    def has_requests(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self.running) or len(self.waiting) > 0

    def add(self, sequence: Sequence) -> None:
        """A request arrives."""
        # No position lies beyond `max_model_len`: an output that gets there ends there, which can be foreseen, too.
        sequence.max_tokens = min(sequence.max_tokens, self.engine.max_model_len - sequence.prompt_tokens)
        if sequence.content is not None and sequence.content.shared_tokens:
            self._begin_caching(self.running)
        self.waiting.add(sequence)

    def _begin_caching(self, holding: list[Sequence]) -> None:
        """From now on there may be something to find: a prompt that others begin with, too, or what a preempted request has computed."""
        if self.engine.enable_prefix_caching and not self._caches:
            self.pool = PrefixCache.after(self.pool, holding, self.engine)
            self._caches = True

    def heeds_arrivals(self) -> bool:
        """Whether an arrival could change the next plan: there is a seat, and nobody in front whom it would wait for."""
        has_seat = len(self.running) < self.engine.max_num_seqs
        return has_seat and (len(self.waiting) == 0 or not isinstance(self.waiting, FcfsQueue))

    # -- planning ---------------------------------------------------------------------------------------------------

    def schedule(self) -> StepPlan:
        """Plans the next step and puts it in flight."""
        plan = StepPlan(self.step + 1)
        # vLLM 0.32 spares a request that is alone: nobody would have to wait for it.
        spared = self.engine.vllm_version == "0.32" and len(self.running) + len(self.waiting) == 1
        self._chunk_limit = 0 if spared else self.engine.long_prefill_token_threshold
        self._skip_sure_finishers(plan.step)
        starved: list[Sequence] = []
        if self._decodes_come_first(plan.step):
            budget = self._run_decodes(plan)
            budget = self._run_in_order(plan, budget, len(self.running) - self._prefilling)
        else:
            budget = self._run_in_order(plan, self.engine.max_num_batched_tokens)
            starved = [s for s in self.running if s.decoding and s.last_step != plan.step]
        if not plan.preempted:
            self._admit(plan, budget)
        self._describe_decodes(plan, starved)
        self.step = plan.step
        for sequence in plan.completing:
            self._start_decoding(sequence, plan.step)
        self.in_flight.append(plan)
        return plan

    def _skip_sure_finishers(self, step: int) -> None:
        """Asynchronous: a request whose step in flight reaches `max_tokens` needs no further row."""
        for sequence in self._finishing.get(step - 1, ()):
            if sequence.decoding and sequence.sure_to_finish:
                sequence.blocks = sequence.blocks_at(step - 1, self.engine.block_size)
                sequence.hashed_tokens = sequence.hashed_at(step - 1, self.engine.depth)
                sequence.emitted_tokens = sequence.emitted_at(step - 1)
                self.decode.leave(sequence)

    def _decodes_come_first(self, step: int) -> bool:
        """Whether all decodes run, before all prompts, so that they need no look one by one."""
        if self.decode.count > self.engine.max_num_batched_tokens:
            return False
        if not self._last_is_victim:
            return self._prefilling == 0 and self.decode.blocks_due(step) <= self.pool.free_blocks
        return all(map(self._is_prefilling, self.running[len(self.running) - self._prefilling :]))

    def _run_decodes(self, plan: StepPlan) -> int:
        """All decodes, less the last in line where blocks run out. Returns the budget left."""
        decode = self.decode
        # A victim comes after all who got a block so far: so many as there were, taken before the victim's come in.
        taken = 0
        while decode.blocks_due(plan.step) - taken > self.pool.free_blocks:
            taken += self.pool.free_blocks
            self.pool.take(self.pool.free_blocks)
            self._preempt(plan, self.running.pop(self._victims.place(self.running, self.step)))
        self.pool.take(decode.blocks_due(plan.step) - taken)
        if not self._prefilling and not plan.preempted:
            plan.epoch = decode.epoch
        return self.engine.max_num_batched_tokens - self.decode.count

    def _run_in_order(self, plan: StepPlan, budget: int, index: int = 0) -> int:
        """The running requests from `index` on in list order, preempting where blocks run out. Returns the budget left."""
        while index < len(self.running) and budget > 0:
            sequence = self.running[index]
            tokens = self._tokens_for(sequence, budget)
            if tokens == 0:
                index += 1
                continue
            blocks = self._new_blocks(sequence, tokens, plan.step)
            while blocks > self.pool.free_blocks and sequence.running:
                place = self._victims.place(self.running, self.step)
                victim = self.running.pop(place)
                if victim.last_step == plan.step:
                    budget += self._unplan(plan, victim)
                    index -= 1
                elif place < index and not (self._vllm_victims and self.engine.vllm_version == "0.26"):
                    # vLLM 0.26 doesn't mind a victim in front without tokens in the step, and passes over the next in line.
                    index -= 1
                self._preempt(plan, victim)
            if not sequence.running:
                index = len(self.running) if self._vllm_victims else index  # vLLM ends the loop here
                continue
            self.pool.take(blocks)
            sequence.last_step = plan.step
            if not sequence.decoding:
                self._put_chunk(plan, sequence, tokens, blocks)
            budget -= tokens
            index += 1
        return budget

    def _tokens_for(self, sequence: Sequence, budget: int) -> int:
        if sequence.decoding:
            return 1
        tokens = sequence.num_tokens - sequence.num_computed_tokens if self._is_prefilling(sequence) else 0
        return min(tokens, budget, self._chunk_limit) if self._chunk_limit else min(tokens, budget)

    @staticmethod
    def _is_prefilling(sequence: Sequence) -> bool:
        # A sure finisher is running, not decoding any more, and has nothing left to compute.
        return sequence.finish_step == NEVER

    def _new_blocks(self, sequence: Sequence, tokens: int, step: int) -> int:
        if sequence.decoding:
            return int(self.decode.is_due(sequence, step))
        return blocks_for(sequence.num_computed_tokens + tokens, self.engine.block_size) - sequence.blocks

    def _unplan(self, plan: StepPlan, victim: Sequence) -> int:
        """Takes a victim of this very step out of its plan; returns the tokens refunded."""
        if victim.decoding:
            return 1
        tokens = next(n for sequence, n, _ in plan.chunks if sequence is victim)
        plan.chunks = [chunk for chunk in plan.chunks if chunk[0] is not victim]
        plan.prefill_tokens -= tokens
        if victim in plan.completing:
            plan.completing.remove(victim)
            self._prefilling += 1
        return tokens

    def _preempt(self, plan: StepPlan, victim: Sequence) -> None:
        """All blocks are lost; the request goes back to the queue and recomputes. Its token in flight still counts."""
        before = plan.step - 1
        if victim.decoding:
            # A block that this very step gave the victim goes back with the others.
            last = plan.step if victim.last_step == plan.step else before
            victim.blocks = victim.blocks_at(last, self.engine.block_size)
            victim.hashed_tokens = victim.hashed_at(last, self.engine.depth)
            victim.emitted_tokens = min(victim.emitted_at(before), victim.output_tokens)
            self._close_segment(victim, min(before, victim.finish_step))
            self.decode.leave(victim)
        elif self._is_prefilling(victim):
            self._prefilling -= 1
        else:
            self._close_segment(victim, victim.finish_step)
        if victim.finish_step > before:
            self._forget_finish(victim)
        self._put_back(plan, victim)

    def _put_back(self, plan: StepPlan, victim: Sequence) -> None:
        if not self._caches:
            self._begin_caching([*self.running, victim])
        self.pool.release(victim)
        victim.blocks = 0
        victim.num_computed_tokens = 0
        victim.running = False
        victim.preemptions += 1
        self.waiting.put_back(victim)
        plan.preempted.append(victim)

    def _admit(self, plan: StepPlan, budget: int) -> None:
        """The waiting requests in queue order; the first that cannot get its blocks ends the loop."""
        engine = self.engine
        while budget > 0 and len(self.waiting) > 0 and len(self.running) < engine.max_num_seqs:
            sequence = self.waiting.peek()
            hit = self.pool.lookup(sequence)
            # Computed already is what another engine sent, of a request that has not been preempted here; it is never less.
            computed = sequence.num_computed_tokens or len(hit.blocks) * engine.block_size
            tokens = sequence.num_tokens - computed
            if self._chunk_limit:
                tokens = min(tokens, self._chunk_limit)
            if tokens > budget and not engine.enable_chunked_prefill:
                break
            tokens = min(tokens, budget)
            # The gate asks for room for the whole sequence but takes only the chunk's blocks: a test, not a reservation.
            whole = sequence.num_tokens if engine.scheduler_reserve_full_isl else computed + tokens
            # What was found in the free queue has to leave it, so only what others hold is saved.
            needed = blocks_for(whole, engine.block_size) - hit.held
            if needed + (self._watermark_blocks if self.running else 0) > self.pool.free_blocks:
                break
            if self._forecast is not None and not self._forecast.admits(sequence, self.running, self.step):
                sequence.held_back = True
                break
            self._start_from(sequence, hit)
            self.pool.take(blocks := blocks_for(computed + tokens, engine.block_size) - len(hit.blocks))
            self.waiting.pop()
            self.running.append(sequence)
            sequence.running = True
            sequence.last_step = plan.step
            self._prefilling += 1
            plan.admitted.append(sequence)
            self._put_chunk(plan, sequence, tokens, blocks)
            budget -= tokens

    def _start_from(self, sequence: Sequence, hit: Hit) -> None:
        """The sequence is admitted with what was found of it, or with what another engine sent."""
        self.pool.share(sequence, hit)
        sequence.blocks = len(hit.blocks)
        if sequence.num_computed_tokens:
            return
        sequence.num_computed_tokens = len(hit.blocks) * self.engine.block_size
        if sequence.preemptions == 0:
            sequence.cached_tokens = sequence.num_computed_tokens

    def _put_chunk(self, plan: StepPlan, sequence: Sequence, tokens: int, blocks: int) -> None:
        sequence.blocks += blocks
        sequence.num_computed_tokens += tokens
        sequence.hashed_tokens = sequence.num_computed_tokens
        self.pool.keep(sequence)
        plan.chunks.append((sequence, tokens, sequence.num_computed_tokens))
        plan.prefill_tokens += tokens
        if sequence.num_computed_tokens == sequence.num_tokens:
            plan.completing.append(sequence)
            self._prefilling -= 1

    def _describe_decodes(self, plan: StepPlan, starved: list[Sequence]) -> None:
        """Writes the decodes of the step into the plan; those that got no budget fall one step behind."""
        decode = self.decode
        if plan.chunks or decode.count == 0:
            plan.epoch = NEVER
        for sequence in starved:
            decode.leave(sequence)
        plan.decode_seqs, plan.intercept_sum, plan.intercept_max = decode.count, decode.intercept_sum, decode.intercept_max
        for sequence in starved:
            self._fall_behind(sequence, plan.step)

    def _fall_behind(self, sequence: Sequence, step: int) -> None:
        if sequence.finish_step < step:
            # Its EOS is in flight: the row it did not get would have been wasted.
            sequence.blocks = sequence.blocks_at(step - 1, self.engine.block_size)
            sequence.hashed_tokens = sequence.hashed_at(step - 1, self.engine.depth)
            sequence.emitted_tokens = sequence.output_tokens
            return
        self._close_segment(sequence, step - 1)
        self._forget_finish(sequence)
        sequence.intercept -= 1
        self._open_segment(sequence, step + 1)
        self._foresee_finish(sequence)
        self.decode.join(sequence)

    # -- results ----------------------------------------------------------------------------------------------------

    def stable_steps(self, limit: int) -> int:
        """How many steps, at most `limit`, end before the scheduler could decide anything else than to go on decoding.

        1 unless all plans in flight are the same steady decode. Valid until a request arrives (`heeds_arrivals`).
        """
        epoch = self.decode.epoch
        for plan in self.in_flight:
            if plan.epoch != epoch:
                return 1
        # Steps that would be planned on the way: none may have a finisher to leave out, nor lack a block.
        unplanned = min(limit - 1, self._next_finish() - self.step)
        if unplanned <= 0:
            return 1
        return 1 + self.decode.steps_within(self.pool.free_blocks, self.step + 1, unplanned)

    def blocks_ahead(self, steps: int) -> int:
        """Blocks that the next `steps` steps of a steady decode take."""
        return self.decode.blocks_due(self.step + 1, steps)

    def commit(self, steps: int, aborted: Iterable[Sequence] = ()) -> tuple[StepPlan, list[Sequence]]:
        """The results of the oldest plan and of the `steps` − 1 after it arrive (`steps` ≤ `stable_steps`).

        Before the last of them the `aborted` are let go. Returns the oldest plan, and the sequences that finished.
        """
        plan = self.in_flight.popleft()
        if steps > 1:
            self.repeat(steps - 1)
        done = plan.step + steps - 1
        for sequence in aborted:
            self._abort(sequence, plan, done - 1)
        finished = self._finishing.pop(done, None)
        if not finished:
            return plan, []
        # What is freed first is taken first: vLLM goes through the rows of the batch, which are in running order.
        in_turn = self._caches and len(finished) > 1
        for sequence in sorted(finished, key=lambda s: self.running.index(s) if s.running else NEVER) if in_turn else finished:
            self._finish(sequence)
        return plan, finished

    def repeat(self, steps: int) -> None:
        """As many results came in, and `steps` more steady decodes were planned, each like the last."""
        self.pool.take(self.decode.blocks_due(self.step + 1, steps))
        self.step += steps
        for plan in self.in_flight:
            plan.step += steps

    def _finish(self, sequence: Sequence) -> None:
        self._close_segment(sequence, sequence.finish_step)
        if not sequence.running:
            self.waiting.remove(sequence)
        else:
            if sequence.decoding:
                sequence.blocks = sequence.blocks_at(self.step, self.engine.block_size)
                self.decode.leave(sequence)
            # The last token is never computed.
            sequence.hashed_tokens = sequence.prompt_tokens + sequence.output_tokens - 1
            self.pool.retire(sequence)
            self.running.remove(sequence)
            sequence.running = False
        sequence.blocks = 0
        sequence.emitted_tokens = sequence.output_tokens

    def _abort(self, sequence: Sequence, plan: StepPlan, last_step: int) -> None:
        """Its client left. Its blocks are free at once; its rows in flight run in vain, and results after `last_step` are dropped.

        Source: vLLM 0.26 `finish_requests()`, called before `update_from_output()` (`v1/engine/core.py` `_process_aborts_queue`).
        """
        self._close_segment(sequence, last_step)
        self.log.cut(sequence.row, last_step)
        if not sequence.running:
            self.waiting.remove(sequence)
        else:
            if sequence.decoding:
                sequence.blocks = sequence.blocks_at(self.step, self.engine.block_size)
                sequence.hashed_tokens = sequence.hashed_at(self.step, self.engine.depth)
                self.decode.leave(sequence)
            elif self._is_prefilling(sequence):
                self._prefilling -= 1
            self.pool.retire(sequence)
            self.running.remove(sequence)
            sequence.running = False
        sequence.blocks = 0
        self._forget_finish(sequence)
        for launched in (plan, *self.in_flight):
            if sequence in launched.completing:
                launched.completing.remove(sequence)

    def close_segments(self) -> None:
        """Ends the run while requests are unfinished: what they emitted so far goes to the log."""
        for sequence in self.running:
            self._close_segment(sequence, min(self.step, sequence.finish_step))

    def check_blocks(self) -> None:
        """Law: free + held blocks = usable.

        Raises:
            InvariantError: it does not hold.
        """
        size = self.engine.block_size
        self.pool.check((s, s.blocks_at(self.step, size) if s.decoding else s.blocks) for s in self.running)
