"""A plain engine: vLLM's rules, one step at a time, every request's state spelled out. The oracle of the simulator.

Written from vLLM 0.26 `v1/core/sched/scheduler.py`, `async_scheduler.py`, `v1/core/kv_cache_manager.py`, `v1/engine/core.py`, with vLLM's
own names. It shares only contracts with the simulator: the engine's options, the requests, and what a step costs.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.features import StepFeatures
from simulator.policies.policy import VLLM, Policy
from simulator.request import RequestTable
from simulator.speculation import Drafting
from tests.reference.plain_attention import PlainAttention
from tests.reference.plain_cache import PlainCache, spell_out
from tests.reference.plain_clock import PlainClock
from tests.reference.plain_request import Request, Row, Step


class PlainEngine:
    """Serves a table of requests, sent at their arrival times, alone.

    `requests`, `steps` (in order) and `states` (instant, blocks held, running, waiting, after each round of scheduling) tell what
    happened; `counts` how often each of the rarer rules applied.
    """

    def __init__(
        self,
        table: RequestTable,
        engine: EngineConfig,
        cost: CostModel,
        drafting: Drafting | None = None,
        aborts_ns: list[int] | None = None,
        policy: Policy = VLLM,
    ) -> None:
        self.engine, self.cost, self.policy = engine, cost, policy
        self.num_spec_tokens = engine.speculative.num_speculative_tokens if engine.speculative else 0
        self.num_lookahead_tokens = 0 if engine.speculative is None or engine.speculative.method == "ngram" else self.num_spec_tokens
        self.drafts = [] if drafting is None else [drafting.of(row) for row in range(len(table))]
        self.aborts_ns = aborts_ns or []
        """When the engine sees that a client has left, by row; without effect where it is done by then."""
        columns = (table.prompt_tokens, table.output_tokens, table.max_tokens, table.priority, table.arrival_ns, table.predicted_tokens)
        common = (engine.max_model_len, drafting is not None)
        self.requests = [Request(row, *values, *common) for row, values in enumerate(zip(*(c.tolist() for c in columns), strict=True))]
        eagle = engine.speculative is not None and engine.speculative.uses_eagle
        self.cache = PlainCache(engine.num_gpu_blocks - 1, engine.block_size, enable_caching=engine.enable_prefix_caching, use_eagle=eagle)
        if engine.enable_prefix_caching:
            spell_out(self.requests, table, self.cache)
        self.attention = PlainAttention(cost.artifact.attention, verifies=drafting is not None)
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.queue: deque[Step] = deque()
        self.steps: list[Step] = []
        self.states: list[tuple[int, int, int, int]] = []
        self.counts: Counter[str] = Counter()
        self.now_ns = 0
        self.clock = PlainClock(cost)
        self.delivered_ns = 0
        """When a client got the last token so far: they come one after the other."""
        self.threshold = 0
        """The longest chunk of the step being scheduled, 0 for any."""

    # -- engine core: the loop and its two clocks -------------------------------------------------------------------

    def run(self) -> PlainEngine:
        """Until every request is finished."""
        overheads, inbox = self.cost.artifact.overheads, deque(self.requests)
        ingress_ns = overheads.ingress_ns
        while any(request.status != "finished" for request in self.requests):
            while inbox and inbox[0].arrival_ns + ingress_ns <= self.now_ns:
                self.enqueue(inbox.popleft())
            self.process_aborts()
            while len(self.queue) < (2 if self.engine.async_scheduling else 1) and (self.running or self.waiting):
                step = self.schedule()
                self.launch(step)
                self.queue.append(step)
                self.steps.append(step)
            self.states.append((self.now_ns, self.held_blocks, len(self.running), len(self.waiting)))
            if not self.queue:
                self.now_ns = inbox[0].arrival_ns + ingress_ns
                continue
            step = self.queue.popleft()
            self.now_ns = max(self.now_ns, step.gpu_end_ns, self.clock.thread_free_ns)
            step.end_ns = self.now_ns
            way_ns = overheads.egress_ns + overheads.egress_per_seq_ns * len(step.rows)
            self.delivered_ns = max(self.delivered_ns, self.now_ns + way_ns)
            self.process_aborts()
            self.update_from_output(step)
        return self

    def launch(self, step: Step) -> None:
        """An empty plan is done at once."""
        if not step.rows:
            self.counts["empty plans"] += 1
            step.gpu_end_ns = self.now_ns
            return
        step.gpu_end_ns = self.clock.launch(self.now_ns, self.features(step))

    def features(self, step: Step) -> StepFeatures:
        prefills = [row for row in step.rows if row.prefill]
        contexts = [row.end for row in step.rows if not row.prefill]
        tokens, context = sum(row.tokens for row in step.rows), sum(contexts)
        again = sum(max(count - 1, 0) for count in self.cache.ref_cnt) * self.engine.block_size * len(contexts) // len(self.running)
        padded, mode = self.engine.graphs.pad(tokens, {row.tokens for row in step.rows} == {1 + self.num_spec_tokens})
        return StepFeatures(
            prefill_seqs=len(prefills),
            prefill_tokens=sum(row.tokens for row in prefills),
            prefill_context_tokens=sum(row.end for row in prefills),
            prefill_attention_tokens=sum(row.end - i for row in prefills for i in range(row.tokens)),
            decode_seqs=len(contexts),
            decode_context_tokens=context - self.attention.saved_tokens(min(again, context)),
            decode_context_max_tokens=max(contexts, default=0),
            verify_tokens=sum(row.drafts for row in step.rows if not row.prefill),
            padded_tokens=padded,
            graph_mode=mode,
            decode_idle_tokens=self.attention.idle_tokens(len(self.steps), step, self.running),
        )

    # -- scheduler --------------------------------------------------------------------------------------------------

    def enqueue(self, request: Request) -> None:
        self.waiting.append(request)
        self._sort()

    def _sort(self) -> None:
        if self.policy.queue != "vllm":
            remaining, per_ns = self.policy.queue == "shortest_remaining_first", self.policy.aging_tokens_per_s / 1e9
            self.waiting.sort(key=lambda r: r.row)
            self.waiting.sort(key=lambda r: (r.remaining_tokens if remaining else r.expected_tokens) + per_ns * r.arrival_ns)
        elif self.engine.scheduling_policy == "priority":
            self.waiting.sort(key=lambda r: (r.priority, r.arrival_ns, r.row))

    def schedule(self) -> Step:
        step = Step()
        alone = len(self.running) + len(self.waiting) <= 1
        self.threshold = 0 if alone and self.engine.vllm_version == "0.32" else self.engine.long_prefill_token_threshold
        budget = self.schedule_running(step)
        if not step.preempted:
            self.schedule_waiting(step, budget)
        for row in step.rows:
            self.update_after_schedule(row)
        step.running = [request.row for request in self.running]
        step.held_blocks = self.held_blocks
        scheduled = {row.request.row for row in step.rows}
        for request in self.running:
            if request.row not in scheduled and not request.is_prefill_chunk and not self._sure_to_finish(request):
                self.counts["decodes without budget"] += 1
        return step

    @staticmethod
    def _sure_to_finish(request: Request) -> bool:
        placeholders = request.num_output_placeholders
        return placeholders > 0 and request.num_computed_tokens + 2 - placeholders >= request.prompt_tokens + request.max_tokens

    def _tokens_to_compute(self, request: Request, budget: int) -> int:
        if self._sure_to_finish(request):
            return 0
        tokens = request.num_tokens + request.num_spec_tokens + request.num_output_placeholders - request.num_computed_tokens
        if 0 < self.threshold < tokens:
            tokens = self.threshold
        return min(tokens, budget, self.engine.max_model_len - request.num_computed_tokens - 1)

    def schedule_running(self, step: Step) -> int:
        """Returns the budget left."""
        budget = self.engine.max_num_batched_tokens
        if self.engine.speculative and self.engine.speculative.method == "draft_model":
            budget -= self.engine.max_num_seqs
        index = 0
        while index < len(self.running) and budget > 0:
            request = self.running[index]
            tokens = self._tokens_to_compute(request, budget)
            if tokens == 0:
                index += 1
                continue
            while request.status == "running" and not self.allocate(request, tokens):
                victim, refund, moved_up = self.pick_victim(step, index)
                budget += refund
                index -= moved_up
                self.preempt(step, victim)
            if request.status != "running":
                self.counts["self-preemptions"] += 1
                if self.policy.preemption == "vllm":
                    return budget
                continue
            end = request.num_computed_tokens + tokens
            drafts = max(end - request.num_tokens - request.num_output_placeholders, 0) if request.num_spec_tokens else 0
            self.counts["drafts cut"] += drafts < request.num_spec_tokens
            request.num_spec_tokens = 0
            step.rows.append(Row(request, tokens, end, request.is_prefill_chunk, drafts=drafts))
            budget -= tokens
            index += 1
        return budget

    def pick_victim(self, step: Step, index: int) -> tuple[Request, int, bool]:
        """(the running request to preempt, the tokens that it had in this very step, whether the loop moves up with those behind it)."""
        rule = self.policy.preemption
        if rule == "vllm" and self.engine.scheduling_policy == "fcfs":
            return self.running.pop(), 0, False
        # Of two requests of one instant the later row is the later one: vLLM's arrival times are clock readings, no two alike.
        victim = {
            "vllm": lambda: max(self.running, key=lambda r: (r.priority, r.arrival_ns, r.row)),
            "longest_remaining": lambda: max(self.running, key=lambda r: (r.remaining_tokens, r.row)),
            "most_blocks": lambda: max(self.running[1:] or self.running, key=lambda r: (len(r.blocks), r.row)),
            "fewest_blocks": lambda: min(self.running, key=lambda r: (len(r.blocks), -r.row)),
        }[rule]()
        place = self.running.index(victim)
        del self.running[place]
        for row in step.rows:
            if row.request is victim:
                step.rows.remove(row)
                self.counts["refunds"] += 1
                return victim, row.tokens, True
        passes_over = rule == "vllm" and self.engine.vllm_version == "0.26"
        if place < index and passes_over:
            self.counts["requests passed over after a preemption"] += 1
        return victim, 0, place < index and not passes_over

    def preempt(self, step: Step, victim: Request) -> None:
        self.free(victim)
        victim.status = "preempted"
        victim.num_computed_tokens = 0
        victim.is_prefill_chunk = True
        victim.num_spec_tokens = 0
        victim.preemptions += 1
        self.waiting.insert(0, victim)
        self._sort()
        step.preempted.append(victim.row)

    def schedule_waiting(self, step: Step, budget: int) -> None:
        engine = self.engine
        self._sort()
        only_decodes = bool(step.rows) and not any(row.prefill for row in step.rows)
        while self.waiting and budget > 0 and len(self.running) < engine.max_num_seqs:
            request = self.waiting[0]
            computed_blocks = self.cache.get_computed_blocks(request.block_hashes, request.num_tokens)
            computed = len(computed_blocks) * engine.block_size
            pad = self.num_spec_tokens > 0 and only_decodes and request.num_tokens - computed == 1
            tokens = self._first_chunk(request.num_tokens - computed, budget, pad, engine.max_model_len - computed)
            if tokens == 0:
                break
            headroom = int(engine.watermark * engine.num_gpu_blocks) if self.running else 0
            room = len(self.cache.free_block_queue) - headroom
            chunk_blocks = self._missing_blocks(request, tokens, computed_blocks)
            if engine.scheduler_reserve_full_isl and self._blocks(request, request.num_tokens - computed, computed_blocks) > room:
                if chunk_blocks <= room:
                    self.counts["held back by the full-sequence gate"] += 1
                break
            if not self.will_fit(request):
                self.counts["held back by the forecast"] += 1
                break
            if chunk_blocks > room:
                break
            self.cache.touch(computed_blocks)
            request.blocks = list(computed_blocks)
            request.num_computed_tokens = computed
            if request.scheduled_ns < 0:
                request.cached_tokens = computed
            self.counts["tokens found"] += computed
            self.counts["tokens found by resumed requests"] += computed * (request.status == "preempted")
            assert self.allocate(request, tokens)
            self.waiting.pop(0)
            self.running.append(request)
            if request.status == "preempted":
                self.counts["resumed"] += 1
            request.status = "running"
            if request.scheduled_ns < 0:
                request.scheduled_ns = self.now_ns
            step.rows.append(Row(request, tokens, computed + tokens, prefill=True, drafts=self.num_spec_tokens * pad, padding=pad))
            step.admitted.append(request.row)
            budget -= tokens

    def _first_chunk(self, tokens: int, budget: int, pad: bool, room: int) -> int:
        """Of the `tokens` that a waiting request lacks, those in this step; 0 if it has to wait for a step with more room."""
        if pad:
            tokens = 1 + self.num_spec_tokens
            if tokens > budget or tokens > room:
                return 0
            self.counts["padded with drafts"] += 1
        if 0 < self.threshold < tokens:
            tokens = self.threshold
        if not self.engine.enable_chunked_prefill and tokens > budget:
            return 0
        return min(tokens, budget)

    def process_aborts(self) -> None:
        """`v1/engine/core.py`: the aborts queue is emptied before a step's output is processed; the input queue holds them, too."""
        for request, seen_ns in zip(self.requests, self.aborts_ns, strict=False):
            if seen_ns > self.now_ns or (request not in self.running and request not in self.waiting):
                continue
            self.counts[f"aborts, {request.status}, tokens in flight: {request.num_output_placeholders > 0}"] += 1
            (self.running if request.status == "running" else self.waiting).remove(request)
            self.free(request)
            request.status = "finished"

    def will_fit(self, request: Request) -> bool:
        """Whether the KV cache holds the whole expected outputs of all who run and of this request."""
        if self.policy.admission == "vllm" or not self.running:
            return True
        size = self.engine.block_size
        blocks = sum(-(-(r.prompt_tokens + r.expected_tokens) // size) for r in [*self.running, request])
        return blocks <= int(self.policy.overcommit * self.engine.usable_blocks)

    def update_after_schedule(self, row: Row) -> None:
        request = row.request
        request.num_computed_tokens += row.tokens
        request.is_prefill_chunk = request.num_computed_tokens < request.num_tokens + request.num_output_placeholders
        row.emits = not request.is_prefill_chunk
        if request.is_prefill_chunk:
            self.counts["partial chunks"] += 1
        elif self.engine.async_scheduling:
            request.num_output_placeholders += 1 + row.drafts
            request.num_spec_tokens = self.num_spec_tokens

    def update_from_output(self, step: Step) -> None:
        for row in step.rows:
            request = row.request
            if request.status == "finished":
                self.counts["wasted rows"] += 1
            elif row.emits:
                self.verify(row)

    def verify(self, row: Row) -> None:
        """Drafts are rejected or not; then the step's tokens are taken in, one by one, until one ends the output."""
        request = row.request
        accepted = 0
        if row.drafts and not row.padding:
            accepted = min(self.drafts[request.row].accepted(request.num_output_tokens), row.drafts)
            self.counts["drafts accepted"] += accepted
            self.counts["drafts rejected"] += row.drafts - accepted
        if request.num_computed_tokens > 0:
            request.num_computed_tokens -= row.drafts - accepted
        if self.engine.async_scheduling:
            request.num_output_placeholders -= row.drafts - accepted
        request.chunk_ns.append(self.now_ns)
        for token in range(1 + accepted):
            if request.status != "finished":
                self.emit(request)
                self.counts["outputs ended amid accepted drafts"] += request.status == "finished" and token < accepted
        if request.status != "finished" and self.drafts and not self.engine.async_scheduling:
            request.num_spec_tokens = self.num_spec_tokens * self.drafts[request.row].proposed(request.num_output_tokens)

    def emit(self, request: Request) -> None:
        request.num_output_tokens += 1
        request.token_ns.append(self.now_ns)
        request.client_ns.append(self.delivered_ns)
        if self.engine.enable_prefix_caching:
            request.all_tokens.append((request.answer, request.num_output_tokens - 1))
            self.cache.extend_hashes(request.block_hashes, request.all_tokens)
        if self.engine.async_scheduling:
            request.num_output_placeholders -= 1
            if request.status == "running":
                known = request.num_computed_tokens - request.num_output_placeholders
                self.cache.cache_full_blocks(request.blocks, request.block_hashes, known)
        ended = request.num_output_tokens == min(request.output_tokens, request.max_tokens)
        if not ended and request.num_tokens < self.engine.max_model_len:
            return
        if request.status == "running":
            self.running.remove(request)
        else:
            self.waiting.remove(request)
            self.counts["finished after their preemption"] += 1
        self.free(request)
        request.status = "finished"
        request.finish_ns = self.now_ns

    # -- KV cache manager -------------------------------------------------------------------------------------------

    @property
    def held_blocks(self) -> int:
        return self.engine.num_gpu_blocks - 1 - len(self.cache.free_block_queue)

    def _missing_blocks(self, request: Request, tokens: int, found: Sequence[int] = ()) -> int:
        return self._blocks(request, tokens + self.num_lookahead_tokens, found)

    def _blocks(self, request: Request, tokens: int, found: Sequence[int] = ()) -> int:
        """Blocks that have to leave the free queue for `tokens` tokens beyond those computed, and those of which blocks were found."""
        size = self.engine.block_size
        slots = min(request.num_computed_tokens + len(found) * size + tokens, self.engine.max_model_len)
        return max(-(-slots // size) - len(request.blocks) - len(found), 0) + self.cache.num_evictable(found)

    def allocate(self, request: Request, tokens: int) -> bool:
        missing = self._missing_blocks(request, tokens)
        if missing > len(self.cache.free_block_queue):
            return False
        request.blocks += self.cache.get_new_blocks(missing)
        known = min(request.num_computed_tokens + tokens, request.num_tokens)
        self.cache.cache_full_blocks(request.blocks, request.block_hashes, known)
        return True

    def free(self, request: Request) -> None:
        self.cache.free_blocks(request.blocks[::-1])
        request.blocks = []
