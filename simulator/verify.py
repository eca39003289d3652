"""Scheduling with drafts: steps that verify K tokens a sequence beside the one that it always has.

Source: vLLM 0.26 `v1/core/sched/scheduler.py` `schedule()`, `_update_after_schedule()` and `update_from_output()`,
`async_scheduler.py`, `v1/core/kv_cache_manager.py` `allocate_slots()`. How far a sequence has come is known only once its step's
result is in, so no sequence is a line: each has its state, and vLLM's rules are applied to it as they stand there.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.chunklog import ChunkLog
from simulator.engine import EngineConfig
from simulator.features import StepFeatures
from simulator.kv import blocks_for
from simulator.scheduler import Scheduler
from simulator.sequence import NEVER, Sequence
from simulator.speculation import Drafting, Drafts
from simulator.stepplan import StepPlan


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

    __slots__ = ("rows",)

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.rows: dict[int, Row] = {}
        """By request, in the order in which they were scheduled."""

    @property
    def tokens(self) -> int:
        """Tokens of the batch before padding."""
        return self.decode_seqs + self.verify_tokens + self.prefill_tokens

    def features(self, engine: EngineConfig) -> StepFeatures:
        """The composition of the step, for the cost model; the context of a decode counts its drafts."""
        query_len = engine.decode_query_len
        padded, mode = engine.graphs.pad(self.tokens, all(row.tokens == query_len for row in self.rows.values()))
        return super().features(engine)._replace(verify_tokens=self.verify_tokens, padded_tokens=padded, graph_mode=mode)


class VerifyScheduler(Scheduler):
    """One engine's scheduler with speculative decoding. Where `Scheduler` counts, it looks at every sequence."""

    def __init__(self, engine: EngineConfig, log: ChunkLog, drafting: Drafting) -> None:
        super().__init__(engine, log)
        self._chunks = log
        assert engine.speculative is not None
        self._num_spec_tokens = engine.speculative.num_speculative_tokens
        self._num_lookahead_tokens = engine.speculative.num_lookahead_tokens
        self._drafting = drafting
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
                victim = running.pop(self._victim_place())
                if victim.row in plan.rows:
                    budget += plan.rows.pop(victim.row).tokens
                    index -= 1
                self._preempt(plan, victim)
            if not sequence.running:
                break
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
        plan.rows[sequence.row] = Row(sequence, tokens, drafts, state.prefilling)

    def _preempt(self, plan: StepPlan, victim: Sequence) -> None:
        """All blocks are lost; the request goes back to the queue and recomputes. What is in flight still counts."""
        self._states[victim.row].prefilling = True
        self.pool.give_back(victim.blocks)
        victim.blocks = 0
        victim.num_computed_tokens = 0
        victim.running = False
        victim.preemptions += 1
        self.waiting.put_back(victim)
        plan.preempted.append(victim)

    def _schedule_waiting(self, plan: VerifyPlan, budget: int) -> None:
        """The waiting requests in queue order; the first that cannot get its blocks ends the loop."""
        engine = self.engine
        # A request of one token joins a step of decodes with drafts that count for nothing: the step stays uniform.
        uniform = bool(plan.rows) and not any(row.prefill for row in plan.rows.values())
        while budget > 0 and len(self.waiting) > 0 and len(self.running) < engine.max_num_seqs:
            sequence = self.waiting.peek()
            tokens, drafts = sequence.num_tokens, 0
            if uniform and tokens == 1:
                tokens, drafts = engine.decode_query_len, self._num_spec_tokens
                if tokens > min(budget, engine.max_model_len):
                    break
            if engine.long_prefill_token_threshold:
                tokens = min(tokens, engine.long_prefill_token_threshold)
            if tokens > budget and not engine.enable_chunked_prefill:
                break
            tokens = min(tokens, budget)
            blocks = self._missing_blocks(sequence, tokens)
            whole = blocks_for(sequence.num_tokens, engine.block_size) if engine.scheduler_reserve_full_isl else 0
            if max(blocks, whole) + (self._watermark_blocks if self.running else 0) > self.pool.free_blocks:
                break
            self.waiting.pop()
            self.running.append(sequence)
            sequence.running = True
            plan.admitted.append(sequence)
            self._put(plan, sequence, tokens, blocks)
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
        plan.intercept_sum = sum(contexts) - len(contexts) * plan.step
        plan.intercept_max = max(contexts, default=plan.step) - plan.step

    # -- results ----------------------------------------------------------------------------------------------------

    def stable_steps(self, limit: int) -> int:  # noqa: ARG002 - one step at a time, whatever is asked for
        """Steps that need no decision: 1."""
        return 1

    def commit(self, steps: int) -> tuple[StepPlan, list[Sequence]]:
        """The result of the oldest plan arrives; returns it, and the sequences that finished."""
        assert steps == 1
        plan = self.in_flight.popleft()
        assert isinstance(plan, VerifyPlan)
        finished = [row.sequence for row in plan.rows.values() if self._emit(row, plan.step)]
        for sequence in finished:
            self._finish(sequence)
        return plan, finished

    def _emit(self, row: Row, step: int) -> bool:
        """Rejected drafts are taken back, the rest is emitted. Returns whether that ends the output."""
        sequence = row.sequence
        token = sequence.emitted_tokens
        if not row.emits or token == sequence.output_tokens:
            return False
        state = self._states[sequence.row]
        accepted = min(state.drafts.accepted(token), row.drafts) if row.drafts and not row.prefill else 0
        rejected = row.drafts - accepted
        if sequence.num_computed_tokens:
            sequence.num_computed_tokens -= rejected
        emitted = min(accepted + 1, sequence.output_tokens - token)
        sequence.emitted_tokens += emitted
        if self.engine.async_scheduling:
            state.num_output_placeholders -= rejected + emitted
        elif state.drafts.proposed(sequence.emitted_tokens):
            state.next = self._num_spec_tokens
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
            self.pool.give_back(sequence.blocks)
            self.running.remove(sequence)
            sequence.running = False
        else:
            self.waiting.remove(sequence)
        sequence.blocks = 0
        del self._states[sequence.row]

    def close_segments(self) -> None:
        """Ends the run while requests are unfinished: what they emitted so far goes to the log."""
        for state in self._states.values():
            self._close_segment(state.sequence, self.step)
