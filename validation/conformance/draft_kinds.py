"""Which rules of speculative scheduling vLLM applied, and how often."""

from __future__ import annotations

from typing import Any

from validation.conformance.kinds import PREFIX_QUOTAS, QUOTAS, Kinds

RARE = ("refunded tokens used again", "victim in front, without tokens in the step", "the same, and others in line behind")
"""Rules that have nothing to do with drafts and hardly apply with them: runs without drafts have to see them."""

DRAFT_QUOTAS = {name: quota for name, quota in QUOTAS.items() if name not in RARE} | {
    "verify step (ngram)": 1000,
    "verify step (draft_model)": 1000,
    "verify step (eagle, asynchronous)": 500,
    "verify step (eagle, synchronous)": 500,
    "all drafts accepted": 500,
    "some drafts accepted": 500,
    "no draft accepted": 500,
    "nothing proposed": 200,
    "drafts cut by the budget": 100,
    "drafts cut by max_model_len": 50,
    "drafts rejected after a preemption": 5,
    "output ends amid accepted drafts": 50,
    "one-token request padded with drafts": 20,
    "one-token request kept out: no room for its padding": 3,
}
"""How often each kind must at least have been seen in a run with drafts."""

DRAFT_PREFIX_QUOTAS = DRAFT_QUOTAS | {name: quota for name, quota in PREFIX_QUOTAS.items() if name not in QUOTAS}
"""The same with prefix caching."""


class DraftKinds(Kinds):
    """Counts kinds of decisions where drafts are verified."""

    def scheduled(self, scheduler: Any, plan: Any) -> None:
        """A step is planned."""
        super().scheduled(scheduler, plan)
        drafts, counts = plan.scheduled_spec_decode_tokens, self.counts
        most = scheduler.num_spec_tokens
        cached = set(plan.scheduled_cached_reqs.req_ids)
        counts[self._verify_step()] += bool(drafts)
        for request in scheduler.running:
            self._look_at_drafts(request, plan, most, request.request_id in cached)
        if self._kept_out(scheduler, plan):
            counts["one-token request kept out: no room for its padding"] += 1

    def _verify_step(self) -> str:
        speculative = self._engine.speculative
        assert speculative is not None
        mode = "asynchronous" if self._engine.async_scheduling else "synchronous"
        return f"verify step (eagle, {mode})" if speculative.uses_eagle else f"verify step ({speculative.method})"

    def _look_at_drafts(self, request: Any, plan: Any, most: int, was_running: bool) -> None:
        counts, tokens = self.counts, plan.num_scheduled_tokens.get(request.request_id, 0)
        drafts = len(plan.scheduled_spec_decode_tokens.get(request.request_id, ()))
        full = request.num_computed_tokens >= self._engine.max_model_len - 1
        if not was_running:
            counts["one-token request padded with drafts"] += drafts > 0
        elif tokens and not request.is_prefill_chunk and drafts < most and self._had_drafts.get(request.request_id, 0) > drafts:
            counts["drafts cut by max_model_len" if full else "drafts cut by the budget"] += 1
        elif tokens == 1 and not request.is_prefill_chunk and self._had_drafts.get(request.request_id, 0) == 0:
            counts["nothing proposed"] += 1

    def begin(self, scheduler: Any) -> None:
        """A step is about to be planned."""
        super().begin(scheduler)
        self._had_drafts = {request.request_id: len(request.spec_token_ids) for request in scheduler.running}

    @staticmethod
    def _is_sure(request: Any) -> bool:
        # As it was when vLLM asked: it was left out, so nothing has changed since.
        placeholders = request.num_output_placeholders
        reached = request.num_computed_tokens + 2 - placeholders
        return bool(placeholders and reached >= request.num_prompt_tokens + request.max_tokens)

    def _kept_out(self, scheduler: Any, plan: Any) -> bool:
        """Whether a seat and some budget are left, but not for the drafts that the head of the line would be padded with."""
        left = scheduler.max_num_scheduled_tokens - plan.total_num_scheduled_tokens
        if self._preempted_now or not scheduler.waiting or len(scheduler.running) >= self._engine.max_num_seqs:
            return False
        head = scheduler.waiting.peek_request()
        (found,), *_ = scheduler.kv_cache_manager.coordinator.find_longest_cache_hit(head.block_hashes, head.num_tokens - 1)
        lacks = head.num_tokens - len(found) * self._engine.block_size
        return not self._head_refused and lacks == 1 and 0 < left <= scheduler.num_spec_tokens

    def sampled(self, plan: Any, output: Any, requests: dict[str, Any]) -> None:
        """The results of a step are about to be handled."""
        for request_id, drafts in plan.scheduled_spec_decode_tokens.items():
            request = requests.get(request_id)
            if request is None or request.is_finished():
                continue
            accepted = len(output.sampled_token_ids[output.req_id_to_index[request_id]]) - 1
            none, every = accepted == 0, accepted == len(drafts)
            self.counts["no draft accepted" if none else "all drafts accepted" if every else "some drafts accepted"] += 1
            self.counts["drafts rejected after a preemption"] += request.num_computed_tokens == 0 and not every
            limit = min(request.max_tokens, self._engine.max_model_len - request.num_prompt_tokens)
            tokens = output.sampled_token_ids[output.req_id_to_index[request_id]]
            ends_early = any(token == request.sampling_params.eos_token_id for token in tokens[:-1])
            self.counts["output ends amid accepted drafts"] += ends_early or request.num_output_tokens + len(tokens) > limit
