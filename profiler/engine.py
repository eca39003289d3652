"""A running vLLM engine whose steps are ours to take: sequences appear at any context, and every step is timed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from time import perf_counter, time
from typing import Any

import numpy as np

from profiler.errors import EngineError
from profiler.options import Profile
from profiler.start import failures, vllm_config

_LOGITS_BYTES = 5 << 30
"""About what is free beside the KV pool of a GPU with 80 GB, and what vLLM kept for its largest step."""


class Engine:
    """vLLM's engine core in this process (its workers too, with one GPU).

    A sequence may *claim* the head of its prompt as computed: it enters the scheduler as one whose keys and values came from elsewhere,
    the way vLLM itself takes in a sequence after a disaggregated prefill (`v1/core/sched/scheduler.py`, waiting requests with
    `num_computed_tokens > 0`). It gets its blocks and runs its next step as if the context had been computed here, so a batch of any
    contexts costs milliseconds to set up. Attention reads the same bytes; what is in them is `probe_fill_kv_cache`'s business.
    """

    def __init__(self, profile: Profile) -> None:
        begin_s = perf_counter()
        with failures("vLLM did not start"):
            from vllm.v1.engine.core import EngineCore
            from vllm.v1.executor.abstract import Executor

            self.config = vllm_config(profile)
            self.core = EngineCore(self.config, Executor.get_class(self.config), log_stats=True)
            self._rpc("probe_install", True)
            if profile.opt.quantization_config and not all(self._rpc("probe_quantized")):
                raise EngineError(
                    f"opt {profile.opt.weights}: vLLM quantized no layer; quantization_config does not say which, or names others"
                )
            if profile.weight_values == "realistic":
                self._rpc("probe_randomize_weights")
            if profile.opt.speculative and profile.opt.speculative.method == "ngram":
                self._rpc("probe_always_draft", profile.opt.speculative.num_speculative_tokens)
            self._rpc("probe_fill_kv_cache")
            self._rpc("probe_logits", True)
        self._names = count()
        self._sampling = profile.sampling
        self._random = np.random.default_rng(profile.seed)
        vocabulary = profile.model.config["vocab_size"]
        self._tokens: list[int] = self._random.integers(0, vocabulary, 2 * self.max_model_len).tolist()
        self._scatter_blocks()
        self.start_s = perf_counter() - begin_s

    @property
    def max_model_len(self) -> int:
        return int(self.config.model_config.max_model_len)

    @property
    def max_num_seqs(self) -> int:
        return int(self.config.scheduler_config.max_num_seqs)

    @property
    def max_num_batched_tokens(self) -> int:
        return int(self.config.scheduler_config.max_num_batched_tokens)

    @property
    def max_num_scheduled_tokens(self) -> int:
        """The budget of a step: a draft model takes a token a seat of it."""
        return int(self.core.scheduler.max_num_scheduled_tokens)

    @property
    def block_size(self) -> int:
        return int(self.config.cache_config.block_size)

    @property
    def num_gpu_blocks(self) -> int:
        return int(self.core.scheduler.kv_cache_config.num_blocks)

    @property
    def tokens_per_decode(self) -> int:
        """Tokens that a decoding sequence runs in a step: one, and the drafts it verifies."""
        return 1 + int(self.core.scheduler.num_spec_tokens)

    @property
    def max_sampled_tokens(self) -> int | None:
        """Positions to which model runner V1 can compare drafts; None: no bound of its own.

        It keeps three copies of their logits in float32 (vLLM 0.26 `v1/sample/rejection_sampler.py`), but its memory profile counts one
        draft for each sequence: far larger batches end the engine for want of memory.
        """
        if self.config.speculative_config is None or self.config.use_v2_model_runner:
            return None
        return int(_LOGITS_BYTES // (3 * 4 * self.config.model_config.get_vocab_size()))

    @property
    def on_gpu(self) -> bool:
        return bool(self.config.device_config.device_type == "cuda")

    @property
    def asynchronous(self) -> bool:
        """Whether a step is launched before the result of the one before it is there."""
        return bool(self.config.scheduler_config.async_scheduling)

    @property
    def holds(self) -> bool:
        """Whether the GPU's own time may need a hold: not where each step waits for the one before it, and the wait is part of it."""
        return self.on_gpu and self.asynchronous

    @property
    def busy(self) -> bool:
        """Whether a step is queued, or a request not finished."""
        return bool(self.core.batch_queue) or self.core.scheduler.has_requests()

    def read_back(self) -> dict[str, Any]:
        """What the engine really runs with, under the names of the measured-trace format."""
        import vllm

        scheduler = self.config.scheduler_config
        compilation = self.config.compilation_config
        return {
            "name": "vllm",
            "version": vllm.__version__,
            "max_model_len": self.max_model_len,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "max_num_seqs": self.max_num_seqs,
            "block_size": self.block_size,
            "num_gpu_blocks": self.num_gpu_blocks,
            "async_scheduling": bool(scheduler.async_scheduling),
            "enable_chunked_prefill": bool(scheduler.enable_chunked_prefill),
            "enforce_eager": bool(self.config.model_config.enforce_eager),
            "cudagraph_mode": str(getattr(compilation.cudagraph_mode, "name", compilation.cudagraph_mode)),
            "cudagraph_capture_sizes": list(compilation.cudagraph_capture_sizes or []),
            "gpu_memory_utilization": self.config.cache_config.gpu_memory_utilization,
        }

    def add(self, prompt_tokens: int, *, head: Sequence[int] = (), claimed_tokens: int = 0, output_tokens: int) -> str:
        """Queues a sequence whose first `claimed_tokens` count as computed; it runs until aborted or done. Returns its name.

        Its prompt begins with `head`, which is found in the prefix cache where another one's did.
        """
        from vllm import SamplingParams
        from vllm.v1.request import Request

        name = f"p{next(self._names)}"
        sampling = SamplingParams(
            temperature=self._sampling.temperature, top_p=self._sampling.top_p, ignore_eos=True, max_tokens=output_tokens, detokenize=False
        )
        offset = int(self._random.integers(0, self.max_model_len))
        request = Request(
            request_id=name,
            prompt_token_ids=[*head, *self._tokens[offset : offset + prompt_tokens - len(head)]],
            sampling_params=sampling,
            pooling_params=None,
            arrival_time=time(),
            block_hasher=self.core.request_block_hasher,
        )
        if claimed_tokens:
            request.num_computed_tokens = claimed_tokens
            request.prefill_stats = None  # vLLM's statistics of computed prompts: there is none here
        self.core.add_request(request)
        return name

    def head(self, tokens: int) -> list[int]:
        """Token ids for prompts that begin alike."""
        drawn: list[int] = self._random.integers(0, max(self._tokens) + 1, tokens).tolist()
        return drawn

    def step(self) -> None:
        """One turn of vLLM's loop: launches a step, and handles the oldest result if the queue is full."""
        with failures("vLLM died while stepping"):
            _, executed = self.core.step_fn()
            self.core.post_step(model_executed=executed)

    def abort(self, names: Iterable[str]) -> None:
        """Ends sequences, and steps until nothing is left of them on the GPU."""
        self.core.abort_requests(list(names))
        while self.busy:
            self.step()

    def hold(self, seconds: float, *, only_joined: bool = False) -> None:
        """Keeps the GPU busy before every step from here on, or only before those that a sequence joins; 0 ends that."""
        self._rpc("probe_hold", seconds, only_joined)

    def fill_kv_cache(self) -> None:
        """Gives the KV cache values anew: what was computed with dummy weights is next to nothing."""
        self._rpc("probe_fill_kv_cache")

    def as_served(self, dummy: bool) -> None:
        """Until called with False: logits, and a KV cache, as dummy weights leave them in service."""
        self._rpc("probe_logits", not dummy)
        self._rpc("probe_fill_kv_cache", dummy)

    def drain(self) -> list[dict[str, Any]]:
        """Rows of the steps since the last call: scheduler's and worker's columns side by side.

        With several GPUs, the row of the one that took longest; it may have waited for any that was launched late.
        """
        steps, self.core.scheduler.steps = self.core.scheduler.steps, []
        workers: list[list[dict[str, Any]]] = self._rpc("probe_drain", len(steps))
        if any(len(rows) != len(steps) for rows in workers):
            raise EngineError(f"{len(steps)} steps were scheduled, but the workers timed {[len(rows) for rows in workers]}")
        timed = [_of_all(rows) for rows in zip(*workers, strict=True)]
        return [step.row() | row for step, row in zip(steps, timed, strict=True)]

    def memory(self) -> dict[str, Any]:
        """The first worker's account of its memory."""
        report: dict[str, Any] = self._rpc("probe_memory")[0]
        return report

    def host_speed(self) -> dict[str, float]:
        """How fast the first worker's host is (`profiler/host.py`)."""
        speed: dict[str, float] = self._rpc("probe_host")[0]
        return speed

    def activation_peaks(self, settings: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
        """(token budget, seats, bytes of temporary memory) at other settings than this engine's."""
        with failures("vLLM's profiling run failed"):
            peaks: list[tuple[int, int, int]] = self._rpc("probe_activation_peaks", settings)[0]
        return peaks

    def close(self) -> None:
        """Ends the engine and its workers."""
        self.core.shutdown()

    def _rpc(self, method: str, *args: Any) -> list[Any]:
        answers: list[Any] = self.core.model_executor.collective_rpc(method, args=args)
        return answers

    def _scatter_blocks(self) -> None:
        """Shuffles the free blocks: in service a sequence's blocks lie scattered, in a fresh pool side by side."""
        queue = self.core.scheduler.kv_cache_manager.block_pool.free_block_queue
        blocks = queue.popleft_n(queue.num_free_blocks)
        queue.append_n([blocks[i] for i in self._random.permutation(len(blocks))])


def _of_all(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One step's row of each GPU → the step's."""
    slowest = max(rows, key=lambda row: row["gpu_s"])
    return slowest | {"queued": all(row["queued"] for row in rows), "launch_end_s": max(row["launch_end_s"] for row in rows)}
