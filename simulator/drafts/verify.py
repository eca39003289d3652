"""Scheduling with drafts: steps that verify K tokens a sequence beside the one that it always has.

Source: vLLM 0.26 `v1/core/sched/scheduler.py` `schedule()`, `_update_after_schedule()` and `update_from_output()`,
`async_scheduler.py`, `v1/core/kv_cache_manager.py` `allocate_slots()`. How far a sequence has come is known only once its step's
result is in, so no sequence is a line: each has its state, and vLLM's rules are applied to it as they stand there.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import sub

import numpy as np
from numpy.typing import NDArray

from simulator.drafts.ahead import Ahead
from simulator.drafts.chunklog import ChunkLog
from simulator.drafts.verifyplan import Row, Verified, VerifyPlan
from simulator.engine import EngineConfig
from simulator.kv import blocks_for
from simulator.policies.policy import VLLM, Policy
from simulator.scheduler import Scheduler
from simulator.speculation import Drafting
from simulator.step.sequence import NEVER, Sequence
from simulator.step.stepplan import StepPlan

Int64 = NDArray[np.int64]


class VerifyScheduler(Scheduler):
    """One engine's scheduler with speculative decoding. Where `Scheduler` counts, it looks at every sequence."""

    def __init__(self, engine: EngineConfig, log: ChunkLog, drafting: Drafting, policy: Policy = VLLM) -> None:
        super().__init__(engine, log, policy)
        self._chunks = log
        assert engine.speculative is not None
        self._num_spec_tokens = engine.speculative.num_speculative_tokens
        self._num_lookahead_tokens = engine.speculative.num_lookahead_tokens
        self._drafting = drafting
        self._ahead: Ahead | None = None
        self._padding_waits = False
        """Whether the next in line waits for room for its padding, of which it has no need if it finds less of itself."""
        self._states: dict[int, Verified] = {}

    def add(self, sequence: Sequence) -> None:
        """A request arrives."""
        super().add(sequence)
        self._states[sequence.row] = Verified(sequence, self._drafting.of(sequence.row))

    # -- planning ---------------------------------------------------------------------------------------------------

    def schedule(self) -> StepPlan:
        """Plans the next step and puts it in flight."""
        plan = VerifyPlan(self.step + 1)
        budget = self._schedule_running(plan)
        if not plan.preempted:
            self._schedule_waiting(plan, budget)
        self.step = plan.step
        self._update_after_schedule(plan)
        self.in_flight.append(plan)
        return plan

    def _schedule_running(self, plan: VerifyPlan) -> int:
        """The running requests in list order, preempting where blocks run out. Returns the budget left."""
        running, budget, index = self.running, self.engine.max_num_scheduled_tokens, 0
        while index < len(running) and budget > 0:
            sequence = running[index]
            tokens = self._tokens_to_compute(sequence, budget)
            if tokens == 0:
                index += 1
                continue
            blocks = self._missing_blocks(sequence, tokens)
            while blocks > self.pool.free_blocks and sequence.running:
                place = self._victims.place(running, self.step)
                victim = running.pop(place)
                if victim.row in plan.rows:
                    budget += plan.rows.pop(victim.row).tokens
                    index -= 1
                elif place < index and not self._vllm_victims:
                    index -= 1
                self._preempt(plan, victim)
            if not sequence.running:
                index = len(running) if self._vllm_victims else index  # vLLM ends the loop here
                continue
            self._put(plan, sequence, tokens, blocks)
            budget -= tokens
            index += 1
        return budget

    def _tokens_to_compute(self, sequence: Sequence, budget: int) -> int:
        state, engine = self._states[sequence.row], self.engine
        placeholders, computed = state.num_output_placeholders, sequence.num_computed_tokens
        # Sure to reach its limit with the step in flight, even if all of its drafts are rejected.
        if placeholders and computed + 2 - placeholders >= sequence.prompt_tokens + sequence.max_tokens:
            return 0
        tokens = sequence.num_tokens + state.next + placeholders - computed
        if engine.long_prefill_token_threshold:
            tokens = min(tokens, engine.long_prefill_token_threshold)
        return min(tokens, budget, engine.max_model_len - computed - 1)

    def _missing_blocks(self, sequence: Sequence, tokens: int) -> int:
        """Blocks for `tokens` more tokens and the drafter's look-ahead. What rejected drafts took is kept."""
        slots = min(sequence.num_computed_tokens + tokens + self._num_lookahead_tokens, self.engine.max_model_len)
        return max(blocks_for(slots, self.engine.block_size) - sequence.blocks, 0)

    def _put(self, plan: VerifyPlan, sequence: Sequence, tokens: int, blocks: int) -> None:
        state = self._states[sequence.row]
        known = sequence.num_tokens + state.num_output_placeholders
        drafts = max(sequence.num_computed_tokens + tokens - known, 0) if state.next else 0
        state.next = 0
        self.pool.take(blocks)
        sequence.blocks += blocks
        # Drafts have no hash before they are accepted.
        sequence.hashed_tokens = min(sequence.num_computed_tokens + tokens, sequence.num_tokens)
        if state.prefilling:
            self.pool.keep(sequence)
        plan.rows[sequence.row] = Row(sequence, tokens, drafts, state.prefilling)

    def _preempt(self, plan: StepPlan, victim: Sequence) -> None:
        """All blocks are lost; the request goes back to the queue and recomputes. What is in flight still counts."""
        self.decode.epoch += 1
        self._states[victim.row].prefilling = True
        self._put_back(plan, victim)

    def _schedule_waiting(self, plan: VerifyPlan, budget: int) -> None:
        """The waiting requests in queue order; the first that cannot get its blocks ends the loop."""
        engine = self.engine
        # A request of one token joins a step of decodes with drafts that count for nothing: the step stays uniform.
        uniform = bool(plan.rows) and not any(row.prefill for row in plan.rows.values())
        self._padding_waits = False
        while budget > 0 and len(self.waiting) > 0 and len(self.running) < engine.max_num_seqs:
            sequence = self.waiting.peek()
            hit = self.pool.lookup(sequence)
            # As in `Scheduler`: what another engine has computed and sent.
            computed = sequence.num_computed_tokens or len(hit.blocks) * engine.block_size
            tokens, drafts = sequence.num_tokens - computed, 0
            if uniform and tokens == 1:
                tokens, drafts = engine.decode_query_len, self._num_spec_tokens
                if tokens > min(budget, engine.max_model_len - computed):
                    self._padding_waits = computed > 0
                    break
            if engine.long_prefill_token_threshold:
                tokens = min(tokens, engine.long_prefill_token_threshold)
            if tokens > budget and not engine.enable_chunked_prefill:
                break
            tokens = min(tokens, budget)
            slots = min(computed + tokens + self._num_lookahead_tokens, engine.max_model_len)
            whole = max(slots, sequence.num_tokens) if engine.scheduler_reserve_full_isl else slots
            needed = blocks_for(whole, engine.block_size) - hit.held
            if needed + (self._watermark_blocks if self.running else 0) > self.pool.free_blocks:
                break
            if self._forecast is not None and not self._forecast.admits(sequence, self.running, self.step):
                sequence.held_back = True
                break
            self._start_from(sequence, hit)
            self.waiting.pop()
            self.running.append(sequence)
            self.decode.epoch += 1
            sequence.running = True
            plan.admitted.append(sequence)
            self._put(plan, sequence, tokens, blocks_for(slots, engine.block_size) - len(hit.blocks))
            plan.rows[sequence.row].drafts = drafts
            budget -= tokens

    def _update_after_schedule(self, plan: VerifyPlan) -> None:
        """All tokens of the step count as computed until results say otherwise."""
        contexts = []
        for row in plan.rows.values():
            sequence, state = row.sequence, self._states[row.sequence.row]
            sequence.num_computed_tokens += row.tokens
            state.prefilling = sequence.num_computed_tokens < sequence.num_tokens + state.num_output_placeholders
            row.emits = not state.prefilling
            if row.prefill:
                self.decode.epoch += row.emits
                plan.chunks.append((sequence, row.tokens, sequence.num_computed_tokens))
                plan.prefill_tokens += row.tokens
                if row.emits:
                    plan.completing.append(sequence)
            else:
                contexts.append(sequence.num_computed_tokens)
                plan.verify_tokens += row.tokens - 1
            if row.emits and self.engine.async_scheduling:
                state.num_output_placeholders += 1 + row.drafts
                state.next = self._num_spec_tokens
        plan.decode_seqs = len(contexts)
        plan.describe(sum(contexts), max(contexts, default=plan.step))
        all_of_all = len(contexts) == len(self.running) == len(plan.rows) and plan.verify_tokens == len(contexts) * self._num_spec_tokens
        # After a preemption nobody was admitted: the next plan may be another.
        if all_of_all and not plan.preempted:
            plan.members = self.decode.epoch

    # -- results ----------------------------------------------------------------------------------------------------

    def stable_steps(self, limit: int) -> int:
        """How many steps, at most `limit`, end before the scheduler could decide anything else than to verify all drafts of all."""
        members = self.decode.epoch
        if self._padding_waits:
            return 1
        for plan in self.in_flight:
            if not isinstance(plan, VerifyPlan) or plan.members != members:
                return 1
        paths: list[list[int]] = []
        limit -= 1
        for sequence in self.running:
            path = self._states[sequence.row].drafts.walk(sequence.emitted_tokens, self._last_token(sequence), limit)
            limit = len(path)
            if limit == 0:
                return 1
            paths.append(path)
        engine = self.engine
        self._ahead = Ahead.look(
            [path[:limit] for path in paths],
            [sequence.prompt_tokens for sequence in self.running],
            [sequence.blocks for sequence in self.running],
            engine.depth * engine.decode_query_len,
            self._num_lookahead_tokens,
            engine.max_model_len,
            engine.block_size,
        )
        return 1 + self._ahead.within(self.pool.free_blocks)

    def _last_token(self, sequence: Sequence) -> int:
        """With more tokens emitted, the next plan would leave the sequence out, or cut its drafts."""
        engine = self.engine
        last = min(sequence.output_tokens - 1, engine.max_model_len - sequence.prompt_tokens - engine.depth * engine.decode_query_len)
        return min(last, sequence.max_tokens - 2) if engine.async_scheduling else last

    def blocks_ahead(self, steps: int) -> int:
        """Blocks that the next `steps` steps of the stretch take."""
        return int(self._ahead.blocks[steps - 1]) if steps and self._ahead is not None else 0

    def emitted_ahead(self, steps: int) -> list[int]:
        """Tokens that each running sequence has emitted once the next `steps` results of the stretch are in."""
        if steps and self._ahead is not None:
            return [path[steps - 1] for path in self._ahead.paths]
        return [sequence.emitted_tokens for sequence in self.running]

    def contexts_ahead(self, steps: int) -> tuple[Int64, Int64]:
        """int64[steps] twice: sum and maximum of the contexts in the steps of the stretch that are yet to be planned."""
        assert self._ahead is not None
        return self._ahead.context_sum[:steps], self._ahead.context_max[:steps]

    def repeat(self, steps: int) -> None:
        """As many results came in, and `steps` more steps were planned, each verifying all drafts."""
        ahead = self._ahead
        assert ahead is not None
        in_flight_tokens = self.engine.depth * self.engine.decode_query_len
        first_step = self.step - self.engine.depth + 1
        for sequence, path, held in zip(self.running, ahead.paths, ahead.held[:, steps - 1].tolist(), strict=True):
            token, state = sequence.emitted_tokens, self._states[sequence.row]
            sequence.emitted_tokens = path[0]
            self._record(sequence, state, first_step, path[0] - token)
            state.segment += map(sub, path[1:steps], path)
            sequence.emitted_tokens = path[steps - 1]
            sequence.num_computed_tokens = sequence.prompt_tokens + sequence.emitted_tokens + in_flight_tokens - 1
            sequence.blocks = held
            sequence.hashed_tokens = sequence.num_tokens
        self.pool.take(int(ahead.blocks[steps - 1]))
        self.step += steps
        for plan in self.in_flight:
            assert isinstance(plan, VerifyPlan)
            plan.step += steps
            plan.describe(int(ahead.context_sum[steps - 1]), int(ahead.context_max[steps - 1]))

    def commit(self, steps: int, aborted: Iterable[Sequence] = ()) -> tuple[StepPlan, list[Sequence]]:
        """The results of the oldest plan and of the `steps` − 1 after it arrive; returns it, and the sequences that finished."""
        plan = self.in_flight.popleft()
        assert isinstance(plan, VerifyPlan)
        if steps > 1:
            self.repeat(steps - 1)
        done = plan.step + steps - 1
        for sequence in aborted:
            self._abort(sequence, plan, done - 1)
        finished = [row.sequence for row in plan.rows.values() if self._emit(row, done)]
        for sequence in finished:
            self._finish(sequence)
        return plan, finished

    def _emit(self, row: Row, step: int) -> bool:
        """Rejected drafts are taken back, the rest is emitted. Returns whether that ends the output."""
        sequence = row.sequence
        token, state = sequence.emitted_tokens, self._states.get(sequence.row)
        if not row.emits or state is None:
            return False
        accepted = min(state.drafts.accepted(token), row.drafts) if row.drafts and not row.prefill else 0
        rejected = row.drafts - accepted
        if sequence.num_computed_tokens:
            sequence.num_computed_tokens -= rejected
        emitted = min(accepted + 1, sequence.output_tokens - token)
        sequence.emitted_tokens += emitted
        if self.engine.async_scheduling:
            state.num_output_placeholders -= rejected + emitted
            if sequence.running:
                known = sequence.num_computed_tokens - state.num_output_placeholders
                sequence.hashed_tokens = max(sequence.hashed_tokens, known)
        elif state.drafts.proposed(sequence.emitted_tokens):
            state.next = self._num_spec_tokens
        if not sequence.running:
            self.waiting.rank_again(sequence)
        self._record(sequence, state, step, emitted)
        return sequence.emitted_tokens == sequence.output_tokens

    def _record(self, sequence: Sequence, state: Verified, step: int, emitted: int) -> None:
        if sequence.segment_step == NEVER or step != sequence.segment_step + len(state.segment):
            self._close_segment(sequence, step)
            sequence.segment_token, sequence.segment_step = sequence.emitted_tokens - emitted + 1, step
        state.segment.append(emitted)

    def _close_segment(self, sequence: Sequence, last_step: int) -> None:  # noqa: ARG002 - what was emitted is known
        state = self._states[sequence.row]
        if state.segment:
            self._chunks.add_chunks(sequence.row, sequence.segment_token, sequence.segment_step, state.segment)
            state.segment = []

    def _finish(self, sequence: Sequence) -> None:
        self._close_segment(sequence, self.step)
        if sequence.running:
            self.pool.retire(sequence)
            self.running.remove(sequence)
            self.decode.epoch += 1
            sequence.running = False
        else:
            self.waiting.remove(sequence)
        sequence.blocks = 0
        del self._states[sequence.row]

    def _abort(self, sequence: Sequence, plan: StepPlan, last_step: int) -> None:
        """Its client left: as at its end, but for the tokens in flight, which nobody gets."""
        del last_step
        self._finish(sequence)
        for launched in (plan, *self.in_flight):
            if sequence in launched.completing:
                launched.completing.remove(sequence)

    def close_segments(self) -> None:
        """Ends the run while requests are unfinished: what they emitted so far goes to the log."""
        for state in self._states.values():
            self._close_segment(state.sequence, self.step)
