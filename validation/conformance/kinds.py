"""Which rules of vLLM's scheduler applied, and how often: a conformance run must have seen them all."""

from __future__ import annotations

from collections import Counter
from typing import Any

from simulator.kv import blocks_for
from validation.conformance.cases import Case

QUOTAS = {
    "steps (fcfs, synchronous)": 1000,
    "steps (fcfs, asynchronous)": 1000,
    "steps (priority, synchronous)": 1000,
    "steps (priority, asynchronous)": 1000,
    "preemption (fcfs, synchronous)": 50,
    "preemption (fcfs, asynchronous)": 50,
    "preemption (priority, synchronous)": 50,
    "preemption (priority, asynchronous)": 50,
    "self-preemption": 50,
    "blocks taken from several": 20,
    "preempted again": 50,
    "preemption amid a prompt": 50,
    "preemption with a result on its way": 50,
    "finished after its preemption": 5,
    "tokens refunded": 5,
    "refunded tokens used again": 1,
    "victim in front, without tokens in the step": 3,
    "the same, and others in line behind": 3,
    "admitted": 500,
    "resumed": 100,
    "head blocked for want of blocks": 100,
    "head blocked by the full-sequence gate alone": 100,
    "head blocked by the watermark alone": 100,
    "head does not fit in one piece": 3,
    "seats full": 500,
    "budget exhausted": 500,
    "chunk": 500,
    "chunk cut by the threshold": 500,
    "prompt without budget": 2,
    "decode without budget": 5,
    "sure finisher left out": 100,
    "at max_model_len, left out": 3,
    "wasted row": 100,
    "empty plan": 20,
}
"""How often each kind of decision must at least have been seen."""

_RARE = {
    "refunded tokens used again",
    "victim in front, without tokens in the step",
    "the same, and others in line behind",
    "head does not fit in one piece",
}
"""Need an engine made for them, and do not depend on what is cached."""

PREFIX_QUOTAS = {name: quota for name, quota in QUOTAS.items() if name not in _RARE} | {
    "blocks taken from several": 10,
    "found: blocks that others hold": 200,
    "found: free blocks": 200,
    "found: blocks scheduled in the same step": 50,
    "found by a resumed request": 50,
    "found: all but the last block, which was full": 20,
    "found: an answer": 50,
    "head blocked though some of it was found": 200,
    "cached block taken for something else": 1000,
    "two blocks of one content": 50,
}
"""The same for cases with prefix caching."""


class Kinds:
    """Counts kinds of decisions as vLLM makes them; `counts` by name."""

    def __init__(self, case: Case) -> None:
        engine = case.engine
        self.counts: Counter[str] = Counter()
        self._case, self._engine = case, engine
        self._mode = f"{engine.scheduling_policy}, {'asynchronous' if engine.async_scheduling else 'synchronous'}"
        self._asking: Any = None
        self._helped_by_front: Any = None
        self._head_refused = False
        self._preempted_now: set[str] = set()
        self._given: dict[str, int] = {}
        self._refunded = 0
        self._order: list[str] = []
        self._away: set[str] = set()
        self._resumed: set[str] = set()

    def begin(self, scheduler: Any) -> None:
        """A step is about to be planned."""
        self._asking, self._helped_by_front, self._head_refused = None, None, False
        self._preempted_now.clear()
        self._given.clear()
        self._refunded = 0
        self._resumed.clear()
        self._order = [request.request_id for request in scheduler.running]

    def allocated(self, request: Any, tokens: int, free_blocks: int, holders: list[int], granted: bool) -> None:
        """`allocate_slots` was asked for room for `tokens` more tokens, with `free_blocks` free; so many hold each block found."""
        self._asking = request
        if granted:
            self._given[request.request_id] = tokens
            if holders:
                self._found(request, holders)
            if request.request_id in self._away:
                self._away.remove(request.request_id)
                self._resumed.add(request.request_id)
                self.counts["resumed"] += 1
            return
        if request.request_id in self._order and request.request_id not in self._away:
            return
        self._head_refused = True
        self.counts["head blocked though some of it was found"] += bool(holders)
        engine = self._engine
        held = sum(number > 0 for number in holders)
        chunk = blocks_for(tokens, engine.block_size) + len(holders) - held
        whole = blocks_for(request.num_tokens, engine.block_size) - held if engine.scheduler_reserve_full_isl else chunk
        if whole <= free_blocks:
            self.counts["head blocked by the watermark alone"] += 1
        elif chunk <= free_blocks:
            self.counts["head blocked by the full-sequence gate alone"] += 1
        else:
            self.counts["head blocked for want of blocks"] += 1

    def _found(self, request: Any, holders: list[int]) -> None:
        counts, size = self.counts, self._engine.block_size
        tokens = len(holders) * size
        counts["found: blocks that others hold"] += max(holders) > 0
        counts["found: free blocks"] += min(holders) == 0
        counts["found by a resumed request"] += request.num_preemptions > 0
        counts["found: all but the last block, which was full"] += tokens + size == request.num_tokens
        arrival = self._case.arrivals[int(request.request_id)]
        if arrival.follows is not None:
            counts["found: an answer"] += tokens > self._case.arrivals[arrival.follows].prompt_tokens
        head = arrival.segments[0] if arrival.segments else None
        others = (other for other in self._given if other != request.request_id)
        # Of those in this step already, one began with the same content, and was not there before.
        counts["found: blocks scheduled in the same step"] += any(
            other not in self._order and self._case.arrivals[int(other)].segments[:1] == (head,) for other in others
        )

    def was_resumed(self, request_id: str) -> bool:
        """Whether the step planned last took in a request that had been preempted."""
        return request_id in self._resumed

    def preempted(self, request: Any) -> None:
        """A request lost its blocks."""
        request_id = request.request_id
        self.counts[f"preemption ({self._mode})"] += 1
        self.counts["self-preemption"] += request is self._asking
        self.counts["preemption amid a prompt"] += request.is_prefill_chunk
        if request_id in self._given:
            self.counts["tokens refunded"] += 1
        elif self._order.index(request_id) < self._order.index(self._asking.request_id):
            self.counts["victim in front, without tokens in the step"] += 1
            self._helped_by_front = self._asking
        self.counts["preemption with a result on its way"] += request.num_in_flight_tokens > 0
        self.counts["preempted again"] += request.num_preemptions > 0
        self._refunded += self._given.pop(request_id, 0)
        self._away.add(request_id)
        self._preempted_now.add(request_id)

    def scheduled(self, scheduler: Any, plan: Any) -> None:
        """A step is planned."""
        engine, counts, tokens = self._engine, self.counts, plan.num_scheduled_tokens
        counts[f"steps ({self._mode})"] += 1
        counts["empty plan"] += not tokens
        counts["budget exhausted"] += plan.total_num_scheduled_tokens == engine.max_num_batched_tokens
        counts["refunded tokens used again"] += plan.total_num_scheduled_tokens + self._refunded > engine.max_num_batched_tokens
        counts["admitted"] += len(plan.scheduled_new_reqs)
        waiting = scheduler.get_request_counts()[1]
        left = engine.max_num_batched_tokens - plan.total_num_scheduled_tokens
        if waiting and not self._preempted_now and left:
            seats_full = len(scheduler.running) == engine.max_num_seqs
            counts["seats full"] += seats_full
            counts["head does not fit in one piece"] += not seats_full and not self._head_refused
        counts["blocks taken from several"] += len(self._preempted_now) > 1
        if self._helped_by_front in scheduler.running:
            behind = scheduler.running[scheduler.running.index(self._helped_by_front) + 1 :]
            in_line = any(tokens.get(r.request_id) or not (self._is_sure(r) or self._is_full(r)) for r in behind)
            counts["the same, and others in line behind"] += in_line
        for request in scheduler.running:
            self._look_at(request, tokens.get(request.request_id, 0))

    @staticmethod
    def _is_sure(request: Any) -> bool:
        return bool(request.num_output_tokens + request.num_output_placeholders >= request.max_tokens)

    def _is_full(self, request: Any) -> bool:
        return bool(request.num_computed_tokens >= self._engine.max_model_len - 1)

    def _look_at(self, request: Any, tokens: int) -> None:
        counts, threshold = self.counts, self._engine.long_prefill_token_threshold
        if request.is_prefill_chunk and tokens:
            counts["chunk"] += 1
            counts["chunk cut by the threshold"] += tokens == threshold
        elif request.is_prefill_chunk:
            counts["prompt without budget"] += 1
        elif not tokens:
            left_out = "at max_model_len, left out" if self._is_full(request) else "decode without budget"
            counts["sure finisher left out" if self._is_sure(request) else left_out] += 1

    def handled(self, plan: Any, status: dict[str, Any], done: list[str]) -> None:
        """The results of a step are in; `status` of its requests before, and those that finished."""
        self.counts["wasted row"] += sum(request_id not in status for request_id in plan.num_scheduled_tokens)
        for request_id in done:
            if status[request_id].name == "PREEMPTED":
                self.counts["finished after its preemption"] += 1
                self._away.discard(request_id)
