"""Serves traffic with vLLM and records it as a measured trace: what every request saw, and every engine step.

    python -m profiler.record model=qwq-32b opt=awq workload=math500 workload.arrivals.rate=5 duration_s=120 out=traces/NAME

Options are those of `python -m profiler`, with `workload=` (conf/workload), `duration_s` and `name`. Writes meta.json, requests.csv.gz and
steps.csv.gz (the measured-trace format). `num_gpu_blocks_override=2000` shrinks the pool, so that queueing and preemption come soon.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from profiler.errors import EngineError
from profiler.options import Recording, load
from profiler.start import RECORD_TO, check_device, failures, prepare_environment, require_vllm, vllm_config
from simulator.errors import UserError
from simulator.request import RequestTable
from simulator.workload import OpenLoop, generate, validate

IDLE_S = 600.0
"""An engine from which nothing has come for so long is dead."""


def record(options: Recording) -> str:
    """Serves the workload and writes the trace to `options.folder`; returns what to say about it.

    Raises:
        UserError: the workload makes no sense, or is not one that arrives by itself.
        EngineError: vLLM failed; nothing is written.
    """
    workload = generate(
        validate(options.workload), options.seed, max_model_len=options.max_model_len or 2**31, duration_s=options.duration_s
    )
    if not isinstance(workload.loop, OpenLoop):
        raise UserError("workload: a trace is recorded of traffic that arrives by itself; give an open workload")
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as raw:
        os.environ[RECORD_TO] = raw
        served = asyncio.run(_serve(options, workload.requests))
        requests, steps, overheads = _tables(served, Path(raw))
    _write(folder, options, served, requests, steps, overheads)
    return (
        f"{len(requests)} requests, {len(steps)} steps in {served['duration_s']:.1f} s; preemptions {int(steps['preempted'].sum())};"
        f" ingress {1e3 * overheads['ingress_s']:.2f} ms, egress {1e3 * overheads['egress_s']:.2f} ms (medians); {folder}"
    )


class _Seen:
    """One request at its client: seconds of `perf_counter`."""

    def __init__(self, name: str, prompt_tokens: int) -> None:
        self.name, self.prompt_tokens = name, prompt_tokens
        self.sent_s = 0.0
        self.output_s: list[float] = []
        self.num_tokens = 0

    def row(self, start_s: float) -> dict[str, Any]:
        """A row of requests.csv.gz. Tokens that came together have no gap between them."""
        gaps_s = np.concatenate([np.diff(self.output_s), np.zeros(self.num_tokens - len(self.output_s))])
        p50, p99, longest = np.percentile(gaps_s, [50, 99, 100]) if len(gaps_s) else (np.nan, np.nan, np.nan)
        return {
            "request_id": self.name,
            "arrival_s": self.sent_s - start_s,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.num_tokens,
            "prefix_id": "",
            "prefix_tokens": 0,
            "ttft_s": self.output_s[0] - self.sent_s,
            "e2e_s": self.output_s[-1] - self.sent_s,
            "itl_p50_s": p50,
            "itl_p99_s": p99,
            "itl_max_s": longest,
        }


async def _serve(options: Recording, table: RequestTable) -> dict[str, Any]:
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    begin_s = perf_counter()
    with failures("vLLM did not start"):
        config = vllm_config(options)
        llm = AsyncLLM.from_vllm_config(config, usage_context=UsageContext.OPENAI_API_SERVER)
    try:
        with failures("vLLM died while serving"):
            await llm.collective_rpc("probe_install", args=(False,))
            await _warm_up(llm, options)
            engine_start_s = perf_counter() - begin_s
            prompts = _prompts(options, table)
            start_s = perf_counter()
            with tqdm(total=len(table), unit="request", file=sys.stderr) as bar:
                seen = await asyncio.gather(*(_client(llm, options, table, i, prompts[i], start_s, bar) for i in range(len(table))))
            duration_s = perf_counter() - start_s
            launches = (await llm.collective_rpc("probe_launches"))[0]
    finally:
        llm.shutdown()
    times = {"start_s": start_s, "duration_s": duration_s, "engine_start_s": engine_start_s}
    return times | {"seen": seen, "config": config, "launches": launches}


def _prompts(options: Recording, table: RequestTable) -> list[list[int]]:
    random = np.random.default_rng(options.seed)
    vocabulary = options.model.config["vocab_size"]
    return [random.integers(0, vocabulary, int(length)).tolist() for length in table.prompt_tokens]


async def _client(llm: Any, options: Recording, table: RequestTable, i: int, prompt: list[int], start_s: float, bar: Any) -> _Seen:
    await asyncio.sleep(max(start_s + table.arrival_ns[i] / 1e9 - perf_counter(), 0.0))
    seen = await _request(llm, options, str(table.request_id[i]), prompt, int(table.output_tokens[i]))
    bar.update()
    return seen


async def _request(llm: Any, options: Recording, name: str, prompt: list[int], output_tokens: int) -> _Seen:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling = SamplingParams(
        temperature=options.sampling.temperature, top_p=options.sampling.top_p, ignore_eos=True, max_tokens=output_tokens,
        detokenize=False, output_kind=RequestOutputKind.DELTA,
    )  # fmt: skip
    seen = _Seen(name, len(prompt))
    seen.sent_s = perf_counter()
    async with asyncio.timeout(IDLE_S) as idle:
        async for output in llm.generate({"prompt_token_ids": prompt}, sampling, name):
            seen.output_s.append(perf_counter())
            idle.reschedule(asyncio.get_running_loop().time() + IDLE_S)
            seen.num_tokens += len(output.outputs[0].token_ids)
    return seen


async def _warm_up(llm: Any, options: Recording) -> None:
    """Kernels are compiled at the first batch of their shape: batches of every size that doubles, before anything is recorded."""
    for size in (1, 2, 4, 8, 16, 32, 64, 128):
        await asyncio.gather(*(_request(llm, options, f"warm-{size}-{i}", [1 + i] * (17 + i), 4) for i in range(size)))


def _tables(served: dict[str, Any], raw: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, float]]:
    """(requests, steps, overheads); steps and the engine's own times of requests are read from what the scheduler wrote."""
    start_s = served["start_s"]
    requests = pd.DataFrame([seen.row(start_s) for seen in served["seen"]])
    steps = pd.read_csv(raw / "steps.csv")
    launches = pd.DataFrame(served["launches"])
    if len(launches) != len(steps):
        raise EngineError(f"{len(steps)} steps were scheduled, but the worker launched {len(launches)}")
    steps = pd.concat([steps, launches], axis=1)
    steps = steps[steps["schedule_s"] >= start_s].reset_index(drop=True)
    steps[["schedule_s", "update_s"]] -= start_s
    inside = pd.read_csv(raw / "engine_requests.csv", dtype={"request_id": str})
    # vLLM appends a random part to the client's name (`v1/engine/input_processor.py` `assign_request_id`).
    inside["name"] = inside["request_id"].str.rpartition("-")[0]
    inside = inside.set_index("name")
    sent = pd.Series({seen.name: seen.sent_s for seen in served["seen"]})
    ended = pd.Series({seen.name: seen.output_s[-1] for seen in served["seen"]})
    overheads = {
        "ingress_s": float((inside["added_s"].reindex(sent.index) - sent).median()),
        "egress_s": float((ended - inside["finished_s"].reindex(ended.index)).median()),
    }
    return requests, steps, overheads


def _write(
    folder: Path, options: Recording, served: dict[str, Any], requests: pd.DataFrame, steps: pd.DataFrame, overheads: dict[str, float]
) -> None:
    meta = _meta(options, served) | {"overheads": overheads}
    try:
        for name, table in (("requests", requests), ("steps", steps)):
            table.round(9).to_csv(folder / f"{name}.csv.gz", index=False, compression={"method": "gzip", "mtime": 0})
        (folder / "meta.json").write_text(json.dumps(meta, indent=1))
    except OSError as error:
        raise EngineError(f"{folder}: {error.strerror}") from error


def _meta(options: Recording, served: dict[str, Any]) -> dict[str, Any]:
    config = served["config"]
    scheduler, cache = config.scheduler_config, config.cache_config
    opt = options.opt
    import vllm

    return {
        "format_version": 1,
        "name": options.name or f"{options.gpu.name}-{options.model.name}-{options.label}",
        "gpu": options.gpu.name,
        "num_gpus": options.tensor_parallel_size,
        "model": options.model.name,
        "weights": opt.weights,
        "kv_cache_dtype": opt.kv_cache_dtype,
        "prefix_caching": opt.enable_prefix_caching,
        "speculative": opt.speculative and opt.speculative.model_dump(mode="json"),
        "tensor_parallel_size": options.tensor_parallel_size,
        "engine": {
            "name": "vllm",
            "version": vllm.__version__,
            "max_model_len": config.model_config.max_model_len,
            "max_num_batched_tokens": scheduler.max_num_batched_tokens,
            "max_num_seqs": scheduler.max_num_seqs,
            "block_size": cache.block_size,
            "num_gpu_blocks": cache.num_gpu_blocks,
            "async_scheduling": bool(scheduler.async_scheduling),
            "enable_chunked_prefill": bool(scheduler.enable_chunked_prefill),
            "enforce_eager": bool(config.model_config.enforce_eager),
        },
        "client": "vLLM AsyncLLM in one process, its engine core in another; no HTTP; dummy weights, output lengths forced with ignore_eos",
        "sampling": options.sampling.model_dump(),
        "duration_s": served["duration_s"],
        "engine_start_s": served["engine_start_s"],
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "num_gpu_blocks_override": options.num_gpu_blocks_override,
        "scheduling_policy": scheduler.policy,
        "workload": options.workload,
    }


def main(arguments: list[str]) -> int:
    """Exit code as `python -m profiler`."""
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(f"{__doc__}\n")
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        options = load(arguments, Recording)
        require_vllm(options.gpu.name)
        prepare_environment(options, in_process=False)
        check_device(options)
        sys.stdout.write(record(options) + "\n")
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except EngineError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: nothing is written of a trace that did not end\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
