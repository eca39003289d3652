"""vLLM's own scheduler, KV-cache manager and engine-core loop on a CPU, over a runner that only counts tokens.

For vLLM 0.26 and 0.32. Its configuration objects, the model runner and the clock are replaced; `Scheduler` or `AsyncScheduler`,
`KVCacheManager`, and `EngineCore.step` or `EngineCore.step_with_batch_queue` are vLLM's.
"""

from __future__ import annotations

from collections import Counter, deque
from concurrent.futures import Future
from queue import Queue
from types import SimpleNamespace
from typing import Any

import torch
from vllm.config import ObservabilityConfig, ParallelConfig, SchedulerConfig, SpeculativeConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.core import EngineCore
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request

from simulator.engine import EngineConfig
from simulator.prefix.content import NOBODY
from validation.conformance.cases import Arrival, Case, Inbox
from validation.conformance.decisions import Decision, probed, shared_heads
from validation.conformance.draft_kinds import DraftKinds
from validation.conformance.kinds import Kinds

EOS, DRAFT = 2, 3
LONE_PROMPTS, LONE_ANSWERS = 1 << 20, 1 << 21
"""Content ids of what only one request has."""


class Runner:
    """In place of the executor: a step that reaches the end of what is known of a sequence samples its next token."""

    def __init__(self, case: Case, text: Text) -> None:
        self._case = case
        self._text = text
        self._emitted = [0] * len(case.arrivals)
        self._computed = [0] * len(case.arrivals)
        self._drafts = [] if case.drafting is None else [case.drafting.of(row) for row in range(len(case.arrivals))]
        self._sampled: Any = None

    def execute_model(self, plan: Any, non_block: bool) -> Future[Any]:
        """Runs a step; its result is handled when the engine core asks for it."""
        cached = plan.scheduled_cached_reqs
        start = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        start |= {new.req_id: new.num_computed_tokens for new in plan.scheduled_new_reqs}
        rows = plan.num_scheduled_tokens
        # Model runner V1 is told of resumed requests among the cached ones.
        begun = {new.req_id for new in plan.scheduled_new_reqs} | set(cached.resumed_req_ids)
        for request_id in rows:
            # With drafts in flight, vLLM's count of computed tokens runs ahead of what is computed; only a new beginning shows in it.
            if request_id in begun or self._case.drafting is None:
                self._computed[int(request_id)] = start[request_id]
        drafts = {request_id: len(tokens) for request_id, tokens in plan.scheduled_spec_decode_tokens.items() if request_id not in begun}
        self._sampled = ModelRunnerOutput(
            req_ids=list(rows),
            req_id_to_index={request_id: index for index, request_id in enumerate(rows)},
            sampled_token_ids=[self._sample(int(request_id), tokens, drafts.get(request_id, 0)) for request_id, tokens in rows.items()],
        )
        return self.sample_tokens(None, non_block)

    def take_draft_token_ids(self) -> DraftTokenIds:
        """Drafts for the requests of the step just run."""
        engine = self._case.engine
        proposed = [self._drafts[int(request_id)].proposed(self._emitted[int(request_id)]) for request_id in self._sampled.req_ids]
        return DraftTokenIds(self._sampled.req_ids, [[DRAFT] * (engine.decode_query_len - 1) * some for some in proposed])

    def sample_tokens(self, _grammar: None, non_block: bool) -> Future[Any]:  # noqa: ARG002 - vLLM's own signature
        """The result of the step just run."""
        future: Future[Any] = Future()
        future.set_result(self._sampled)
        return future

    def _sample(self, row: int, tokens: int, drafts: int) -> list[int]:
        arrival = self._case.arrivals[row]
        self._computed[row] += tokens
        if self._computed[row] < arrival.prompt_tokens + self._emitted[row]:
            return []
        before = self._emitted[row]
        self._emitted[row] += 1 + (min(self._drafts[row].accepted(before), drafts) if drafts else 0)
        self._computed[row] = arrival.prompt_tokens + self._emitted[row] - 1
        limit = min(arrival.max_tokens, self._case.engine.max_model_len - arrival.prompt_tokens)
        # Where a limit ends the output anyway, every other request says nothing of its end.
        ends = arrival.output_tokens < limit or row % 2 == 1
        answer = self._text.answer
        return [EOS if ends and token + 1 == arrival.output_tokens else answer(row, token) for token in range(before, self._emitted[row])]


class Text:
    """Token ids that are the same where contents are, and else are not."""

    def __init__(self, case: Case) -> None:
        self._arrivals = case.arrivals

    def prompt(self, row: int) -> list[int]:
        """All of the prompt of request `row`."""
        arrival = self._arrivals[row]
        tokens = [self._token(content_id, place) for content_id, count in arrival.segments for place in range(count)]
        own = arrival.prompt_tokens - len(tokens)
        return tokens + [self._token(LONE_PROMPTS + row, place) for place in range(own)]

    def answer(self, row: int, place: int) -> int:
        """The token at `place` of the answer to request `row`."""
        answer_id = self._arrivals[row].answer_id
        return self._token(LONE_ANSWERS + row if answer_id == NOBODY else answer_id, place)

    @staticmethod
    def _token(content_id: int, place: int) -> int:
        return DRAFT + 1 + (content_id << 16) + place


class Driver:
    """Takes the requests of a case through vLLM's engine core, and writes down what it decides."""

    def __init__(self, case: Case, use_v2_model_runner: bool) -> None:
        self.case = case
        self.decisions: list[Decision] = []
        self.kinds = Kinds(case) if case.drafting is None else DraftKinds(case)
        engine = case.engine
        watched = _watched(AsyncScheduler if engine.async_scheduling else Scheduler)
        self.scheduler = watched(self, **_scheduler_arguments(engine, use_v2_model_runner))
        self.text = Text(case)
        self._hasher = _block_hasher(engine)
        self._heads = shared_heads(case)
        self._asked: dict[int, Any] = {}
        self.handled = 0
        self.done: set[int] = set()
        self.finished: list[int] = []
        self.preempted: list[int] = []
        self._core = _engine_core(self.scheduler, Runner(case, self.text), engine.depth)
        self._step = self._core.step_with_batch_queue if engine.async_scheduling else self._core.step

    def run(self) -> Driver:
        """Until every request is finished."""
        inbox = Inbox(self.case)
        while True:
            for row in inbox.due(self.handled, self.done):
                self.scheduler.add_request(_request(row, self.case.arrivals[row], self.text.prompt(row), self._hasher))
            # As `EngineCoreProc.has_work` and `run_busy_loop` have it: new requests are taken in between any two steps.
            if self.scheduler.has_requests() or self._core.batch_queue:
                _, executed = self._step()
                self._core.post_step(executed)
            elif (handled := inbox.next_handled(self.done)) is not None:
                self.handled = handled
            else:
                return self

    def record(self, plan: Any) -> None:
        """Writes down what `schedule()` just decided."""
        scheduler = self.scheduler
        admitted = [new.req_id for new in plan.scheduled_new_reqs]
        # Model runner V1 is told of resumed requests among the cached ones.
        admitted += [request_id for request_id in plan.scheduled_cached_reqs.req_ids if self.kinds.was_resumed(request_id)]
        place = {request.request_id: index for index, request in enumerate(scheduler.running)}
        manager = scheduler.kv_cache_manager
        self.decisions.append(
            Decision(
                finished=tuple(sorted(self.finished)),
                tokens=tuple((int(request_id), tokens) for request_id, tokens in plan.num_scheduled_tokens.items()),
                preempted=tuple(self.preempted),
                admitted=tuple(int(request_id) for request_id in sorted(admitted, key=place.__getitem__)),
                running=tuple(int(request.request_id) for request in scheduler.running),
                computed_tokens=tuple(request.num_computed_tokens for request in scheduler.running),
                blocks=tuple(len(manager.get_block_ids(request.request_id)[0]) for request in scheduler.running),
                free_blocks=manager.block_pool.get_num_free_blocks(),
                waiting=scheduler.get_request_counts()[1],
                found=self._found(),
            )
        )
        self.finished.clear()
        self.preempted.clear()

    def _found(self) -> int:
        """What a request would find of what it may have in common with others: `Decision.found`."""
        row = probed(self.case, len(self.decisions), self.done)
        if row is None:
            return 0
        if row not in self._asked:
            self._asked[row] = _request(row, self.case.arrivals[row], self.text.prompt(row), self._hasher)
        request = self._asked[row]
        (blocks,), *_ = self.scheduler.kv_cache_manager.coordinator.find_longest_cache_hit(request.block_hashes, request.num_tokens - 1)
        if self.case.engine.speculative is not None and self.case.engine.speculative.uses_eagle:
            # It leaves out the last one that is there.
            return max(min(len(blocks) + 1, self._heads[row]) - 1, 0)
        return min(len(blocks), self._heads[row])


def _watched(base: Any) -> Any:
    """One of vLLM's schedulers that tells a driver what it does."""

    class Watched(base):  # type: ignore[misc]
        def __init__(self, driver: Driver, **arguments: Any) -> None:
            super().__init__(**arguments)
            self._driver = driver
            allocate_slots = self.kv_cache_manager.allocate_slots

            def watched_allocate_slots(request: Any, num_new_tokens: int, **options: Any) -> Any:
                free_blocks = self.kv_cache_manager.block_pool.get_num_free_blocks()
                found = options.get("new_computed_blocks")
                holders = [block.ref_cnt for block in found.blocks[0]] if found else []
                blocks = allocate_slots(request, num_new_tokens, **options)
                driver.kinds.allocated(request, num_new_tokens, free_blocks, holders, blocks is not None)
                return blocks

            self.kv_cache_manager.allocate_slots = watched_allocate_slots
            _watch_cache(self.kv_cache_manager.block_pool, driver.kinds.counts)

        def schedule(self, throttle_prefills: bool = False) -> Any:
            unfinished = self.has_unfinished_requests()
            self._driver.kinds.begin(self)
            plan = super().schedule(throttle_prefills)
            # Without an unfinished request, vLLM plans a step of no tokens only to tell its workers whom they can forget.
            if unfinished:
                self._driver.kinds.scheduled(self, plan)
                self._driver.record(plan)
            return plan

        def _preempt_request(self, request: Any, timestamp: float, **options: Any) -> None:
            self._driver.kinds.preempted(request)
            self._driver.preempted.append(int(request.request_id))
            super()._preempt_request(request, timestamp, **options)

        def update_from_output(self, plan: Any, output: Any) -> Any:
            self._driver.handled += plan.total_num_scheduled_tokens > 0
            status = {
                request_id: self.requests[request_id].status for request_id in plan.num_scheduled_tokens if request_id in self.requests
            }
            if isinstance(self._driver.kinds, DraftKinds):
                self._driver.kinds.sampled(plan, output, self.requests)
            outputs = super().update_from_output(plan, output)
            done = [o.request_id for part in outputs.values() for o in part.outputs if o.finish_reason is not None]
            self._driver.kinds.handled(plan, status, done)
            self._driver.finished += map(int, done)
            self._driver.done.update(map(int, done))
            return outputs

    return Watched


def _watch_cache(pool: Any, counts: Counter[str]) -> None:
    cached = pool.cached_block_hash_to_block
    insert, pop = cached.insert, cached.pop

    def watched_insert(key: Any, block: Any) -> None:
        counts["two blocks of one content"] += cached.get_one_block(key) is not None
        insert(key, block)

    def watched_pop(key: Any, block_id: int) -> Any:
        block = pop(key, block_id)
        counts["cached block taken for something else"] += block is not None
        return block

    cached.insert, cached.pop = watched_insert, watched_pop


def _block_hasher(engine: EngineConfig) -> Any:
    if not engine.enable_prefix_caching:
        return None
    init_none_hash(sha256)
    return get_request_block_hasher(engine.block_size, sha256)


def _request(row: int, arrival: Arrival, prompt: list[int], block_hasher: Any) -> Any:
    sampling = SamplingParams(max_tokens=arrival.max_tokens)
    sampling.update_from_generation_config({}, EOS)
    return Request(
        request_id=str(row),
        prompt_token_ids=prompt,
        sampling_params=sampling,
        pooling_params=None,
        arrival_time=float(row),
        priority=arrival.priority,
        block_hasher=block_hasher,
    )


def _scheduler_arguments(engine: EngineConfig, use_v2_model_runner: bool) -> dict[str, Any]:
    block = FullAttentionSpec(block_size=engine.block_size, num_kv_heads=1, head_size=1, dtype=torch.float32)
    return {
        "vllm_config": _vllm_config(engine, use_v2_model_runner),
        "kv_cache_config": KVCacheConfig(engine.num_gpu_blocks, [], [KVCacheGroupSpec(["layer"], block)]),
        "structured_output_manager": SimpleNamespace(should_advance=lambda _: False, accept_tokens=lambda *_: True),
        "block_size": engine.block_size,
        "log_stats": False,
    }


def _vllm_config(engine: EngineConfig, use_v2_model_runner: bool) -> SimpleNamespace:
    """The part of `VllmConfig` that a scheduler asks for: a text model on one GPU, without the features that are left out here."""
    left_out = ("lora_config", "kv_events_config", "kv_transfer_config", "ec_transfer_config")
    speculation = _speculative_config(engine)
    lookahead = engine.speculative.num_lookahead_tokens if engine.speculative else 0
    return SimpleNamespace(
        scheduler_config=SchedulerConfig(
            max_model_len=engine.max_model_len,
            is_encoder_decoder=False,
            max_num_batched_tokens=engine.max_num_batched_tokens,
            max_num_seqs=engine.max_num_seqs,
            enable_chunked_prefill=engine.enable_chunked_prefill,
            long_prefill_token_threshold=engine.long_prefill_token_threshold,
            policy=engine.scheduling_policy,
            scheduler_reserve_full_isl=engine.scheduler_reserve_full_isl,
            watermark=engine.watermark,
            async_scheduling=engine.async_scheduling,
            max_num_scheduled_tokens=_max_num_scheduled_tokens(engine, speculation),
        ),
        cache_config=SimpleNamespace(
            num_gpu_blocks=engine.num_gpu_blocks,
            enable_prefix_caching=engine.enable_prefix_caching,
            mamba_cache_mode="none",
            enable_mamba_shared_prefix_checkpoint=False,
        ),
        model_config=SimpleNamespace(
            max_model_len=engine.max_model_len,
            runner_type="generate",
            is_encoder_decoder=False,
            is_diffusion=False,
            is_multimodal_model=False,
            multimodal_config=None,
            uses_mrope=False,
            supports_multimodal_inputs=False,
            enable_return_routed_experts=False,
            return_sampling_mask=False,
        ),
        parallel_config=ParallelConfig(),
        observability_config=ObservabilityConfig(),
        aux_output_config=SimpleNamespace(enabled=False),
        ec_manager_config=SimpleNamespace(get_encoder_cache_manager_obj=lambda: None),
        is_mm_encoder_only=False,
        speculative_config=speculation,
        num_speculative_tokens=engine.decode_query_len - 1,
        num_lookahead_tokens=lookahead,
        num_prefill_lookahead_tokens=lookahead,
        max_concurrent_batches=engine.depth,
        max_in_flight_tokens=engine.depth * engine.max_num_batched_tokens,
        use_v2_model_runner=use_v2_model_runner,
        **dict.fromkeys(left_out),
    )


def _speculative_config(engine: EngineConfig) -> SpeculativeConfig | None:
    """vLLM's own, without the draft model that it would look for."""
    if engine.speculative is None:
        return None
    config = SpeculativeConfig.__new__(SpeculativeConfig)
    vars(config).update(engine.speculative.model_dump(), parallel_drafting=False, num_speculative_tokens_per_batch_size=None)
    return config


def _max_num_scheduled_tokens(engine: EngineConfig, config: SpeculativeConfig | None) -> int | None:
    """As `VllmConfig._set_max_num_scheduled_tokens` has it."""
    return None if config is None else engine.max_num_batched_tokens - config.max_num_new_slots_for_drafting * engine.max_num_seqs


def _engine_core(scheduler: Any, runner: Runner, depth: int) -> Any:
    """An `EngineCore` that starts neither executor nor processes."""
    core = EngineCore.__new__(EngineCore)
    vars(core).update(
        vllm_config=scheduler.vllm_config,
        scheduler=scheduler,
        model_executor=runner,
        batch_queue_size=depth,
        batch_queue=deque(maxlen=depth) if depth > 1 else None,
        aborts_queue=Queue(),
        log_stats=False,
        is_ec_consumer=True,
        is_mm_encoder_only=False,
        is_pooling_model=False,
        check_for_draft_tokens=scheduler.vllm_config.speculative_config is not None,
        async_scheduling=depth > 1,
        _weight_version=None,
    )
    return core
