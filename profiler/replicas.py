"""vLLM's asynchronous engines, each a process of its own on GPUs of its own, as a client in this process reaches them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

from profiler.options import Recording
from profiler.start import RECORD_TO, failures, vllm_config


class Replica(Protocol):
    """One engine as a client sees it."""

    outstanding: int
    """Requests sent there and not finished: what the simulator's routers read."""
    heard_s: float
    """When something last came from it, by `perf_counter`."""
    raw: Path
    """Folder to which its scheduler writes."""
    client: str
    """How the engine is reached, in words."""

    async def install(self) -> None:
        """Has the worker record its launches."""

    def generate(self, name: str, prompt: list[int], output_tokens: int) -> AsyncIterator[int]:
        """Numbers of tokens, each as they come."""

    def engine_name(self, name: str) -> str:
        """What the engine calls the client's request, but for the random part that it appends."""

    async def facts(self) -> dict[str, Any]:
        """The engine's options as read back from it (`engine` of `meta.json`), and its scheduling policy."""

    async def host_speed(self) -> dict[str, float]:
        """How fast the host is at launching (`profiler/host.py`)."""
        ...

    async def launches(self) -> dict[str, list[Any]]:
        """What the worker recorded of every step since the start."""

    async def forget_prefixes(self) -> None:
        """Empties the prefix cache."""

    async def close(self) -> None: ...


class EngineReplica:
    """vLLM's `AsyncLLM`: no server between client and engine."""

    client = "vLLM AsyncLLM in one process, its engine core in another; no HTTP; dummy weights, output lengths forced with ignore_eos"

    def __init__(self, options: Recording, raw: Path, gpus: str | None) -> None:
        """Starts the engine on `gpus` (None: on those that are there); blocks until it can serve."""
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        self.outstanding, self.heard_s = 0, 0.0
        self.raw = raw
        self._sampling, self._installed = options.sampling, installed(options)
        with failures("vLLM did not start"):
            os.environ[RECORD_TO] = str(raw)
            if gpus is not None:  # the engine's process inherits what it may see; this process opens no context on any GPU
                os.environ["CUDA_VISIBLE_DEVICES"] = gpus
            self.config = vllm_config(options)
            self._llm = AsyncLLM.from_vllm_config(self.config, usage_context=UsageContext.OPENAI_API_SERVER)

    def engine_name(self, name: str) -> str:
        """The same."""
        return name

    async def install(self) -> None:
        """Has the worker record its launches."""
        for method, argument in self._installed:
            await self._llm.collective_rpc(method, args=(argument,))

    async def generate(self, name: str, prompt: list[int], output_tokens: int) -> AsyncIterator[int]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = SamplingParams(
            temperature=self._sampling.temperature, top_p=self._sampling.top_p, ignore_eos=True, max_tokens=output_tokens,
            detokenize=False, output_kind=RequestOutputKind.DELTA,
        )  # fmt: skip
        async for output in self._llm.generate({"prompt_token_ids": prompt}, sampling, name):
            yield len(output.outputs[0].token_ids)

    async def facts(self) -> dict[str, Any]:
        """Of vLLM's own configuration, into which the started engine wrote the number of blocks."""
        return engine_facts(self.config)

    async def host_speed(self) -> dict[str, float]:
        """Of the first worker's host (`profiler/host.py`)."""
        speed: dict[str, float] = (await self._llm.collective_rpc("probe_host"))[0]
        return speed

    async def launches(self) -> dict[str, list[Any]]:
        """As columns, from the first worker."""
        columns: dict[str, list[Any]] = (await self._llm.collective_rpc("probe_launches"))[0]
        return columns

    async def forget_prefixes(self) -> None:
        await self._llm.reset_prefix_cache()

    async def close(self) -> None:
        self._llm.shutdown()
        del self._llm  # else vLLM shuts it down a second time as the interpreter ends


def installed(options: Recording) -> list[tuple[str, Any]]:
    """What the worker is told before it serves: (method of `WorkerExtension`, its argument)."""
    calls: list[tuple[str, Any]] = [("probe_install", False)]
    if options.logits == "trained":
        calls.append(("probe_logits", True))
    if options.opt.speculative and options.opt.speculative.method == "ngram":
        calls.append(("probe_always_draft", options.opt.speculative.num_speculative_tokens))
    return calls


def engine_facts(config: Any) -> dict[str, Any]:
    """`engine` of `meta.json` from a started engine's `VllmConfig`."""
    import vllm

    scheduler, cache = config.scheduler_config, config.cache_config
    return {
        "name": "vllm",
        "version": vllm.__version__,
        "max_model_len": config.model_config.max_model_len,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "max_num_seqs": scheduler.max_num_seqs,
        "block_size": cache.block_size,
        "num_gpu_blocks": cache.num_gpu_blocks,
        "async_scheduling": bool(scheduler.async_scheduling),
        "enable_chunked_prefill": bool(scheduler.enable_chunked_prefill),
        "long_prefill_token_threshold": scheduler.long_prefill_token_threshold,
        "scheduling_policy": scheduler.policy,
        "enforce_eager": bool(config.model_config.enforce_eager),
    }


def gpus_of_replicas(options: Recording) -> list[str | None]:
    """`CUDA_VISIBLE_DEVICES` of each replica; None where there is only one, or no GPU."""
    if options.num_replicas == 1 or options.gpu.device != "cuda":
        return [None] * options.num_replicas
    size = options.tensor_parallel_size
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = given.split(",") if given else [str(gpu) for gpu in range(size * options.num_replicas)]
    return [",".join(visible[first : first + size]) for first in range(0, size * options.num_replicas, size)]
