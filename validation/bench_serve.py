"""Results of `vllm bench serve --save-result --save-detailed` as a measured trace (vLLM 0.26 `benchmarks/serve.py`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simulator.config import Config
from simulator.errors import UserError
from simulator.workload import read_trace

COLUMNS = ("start_times", "input_lens", "output_lens", "ttfts", "itls")


def import_bench(bench: Path, config: Config, out: Path) -> int:
    """Writes `meta.json` and `requests.csv.gz` to `out`; returns the number of requests. Failed ones are left out.

    What a benchmark's result does not say of the engine is taken from the configuration, and for the rest from the cost model.

    Raises:
        UserError: the result has no details, or `out` cannot be written.
    """
    read_trace(bench, "vllm_bench")  # says in one line what is wrong with the file
    result = json.loads(bench.read_text())
    if missing := [name for name in COLUMNS if name not in result]:
        raise UserError(f"{bench}: {missing[0]} is missing; record with `vllm bench serve --save-result --save-detailed`")
    rows = [_row(index, *values) for index, values in enumerate(zip(*(result[name] for name in COLUMNS), strict=True)) if values[2] >= 1]
    table = pd.DataFrame(rows).sort_values("arrival_s", kind="stable")
    table["arrival_s"] -= table["arrival_s"].min()
    try:
        out.mkdir(parents=True, exist_ok=True)
        table.round(9).to_csv(out / "requests.csv.gz", index=False, compression={"method": "gzip", "mtime": 0})
        (out / "meta.json").write_text(json.dumps(_meta(bench, config), indent=1) + "\n")
    except OSError as error:
        raise UserError(f"out={out}: cannot be written ({error.strerror})") from None
    return len(table)


def _row(index: int, start_s: float, prompt_tokens: int, output_tokens: int, ttft_s: float, itls_s: list[float]) -> dict[str, Any]:
    """A request. The benchmark's client notes a gap a chunk that it gets; tokens that came together have none between them."""
    gaps_s = np.concatenate([itls_s, np.zeros(max(output_tokens - 1 - len(itls_s), 0))])
    p50, p99, longest = np.percentile(gaps_s, [50, 99, 100]) if len(gaps_s) else (np.nan, np.nan, np.nan)
    return {
        "request_id": str(index),
        "arrival_s": start_s,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "prefix_id": "",
        "prefix_tokens": 0,
        "ttft_s": ttft_s,
        "e2e_s": ttft_s + sum(itls_s),
        "itl_p50_s": p50,
        "itl_p99_s": p99,
        "itl_max_s": longest,
    }


def _meta(bench: Path, config: Config) -> dict[str, Any]:
    cost = config.load_cost()
    engine = config.engine_config(cost)
    name, _, version = cost.artifact.engine.partition(" ")
    options = ("max_model_len", "max_num_batched_tokens", "max_num_seqs", "block_size", "num_gpu_blocks", "async_scheduling")
    return {
        "format_version": 1,
        "name": bench.name.removesuffix(".json"),
        "gpu": config.gpu.name,
        "num_gpus": config.cluster.num_replicas * config.tensor_parallel_size,
        "model": config.model.name,
        "weights": config.opt.weights,
        "kv_cache_dtype": config.opt.kv_cache_dtype,
        "prefix_caching": engine.enable_prefix_caching,
        "speculative": config.opt.speculative,
        "tensor_parallel_size": config.tensor_parallel_size,
        "engine": {
            "name": name,
            "version": version,
            **{option: getattr(engine, option) for option in (*options, "enable_chunked_prefill")},
        },
        "client": "vllm bench serve",
        "scheduling_policy": engine.scheduling_policy,
        "num_gpu_blocks_override": config.engine.get("num_gpu_blocks_override"),
    }
