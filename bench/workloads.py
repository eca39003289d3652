"""The fixed workloads W1 to W6, and the step times that they are served with."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from simulator.artifacts.artifact import Artifact
from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.request import RequestTable
from simulator.simulate import Scenario
from simulator.workload import OpenLoop, Workload, generate, validate
from simulator.workload.base import NS_PER_S

NUM_GPU_BLOCKS = 26_900
BLOCK_SIZE = 16
MAX_NUM_SEQS = 256
MAX_NUM_BATCHED_TOKENS = 8192
ARRIVAL_SEED = 1


@dataclass(frozen=True)
class Load:
    """Poisson arrivals of equal requests; without lengths: prompts and outputs of DeepSeek-R1's production traffic."""

    requests: int
    requests_per_s: float
    replicas: int = 1
    prompt_tokens: int | None = 200
    output_tokens: int | None = 2000

    def describe(self) -> str:
        lengths = "production R1 lengths" if self.output_tokens is None else f"{self.output_tokens:,} output tokens"
        behind = f", {self.replicas} replicas" if self.replicas > 1 else ""
        return f"{self.requests:,} × {lengths} at {self.requests_per_s:g}/s{behind}"


LOADS = {
    "W1": Load(1_000, 8),
    "W2": Load(5_000, 3.5),
    "W3": Load(300, 1, output_tokens=10_000),
    "W4": Load(5_000, 28, replicas=8),
    "W5": Load(100_000, 100, replicas=32, prompt_tokens=None, output_tokens=None),
    "W6": Load(5_000, 3.5, output_tokens=20_000),
}


def scenario(name: str, cost: CostModel) -> Scenario:
    """The workload `name` in front of equal engines."""
    load = LOADS[name]
    if load.output_tokens is None:
        # Prompts go up to 57,284 tokens, outputs up to 32,768.
        max_model_len = 131_072
        spec = {
            "kind": "open",
            "arrivals": {"kind": "poisson", "rate": load.requests_per_s},
            "lengths": {"kind": "catalogue", "name": "deepseek-r1/production"},
        }
        workload = generate(validate(spec), ARRIVAL_SEED, max_model_len=max_model_len, num_requests=load.requests)
    else:
        max_model_len = 32_768
        gaps_s = np.random.default_rng(ARRIVAL_SEED).exponential(1 / load.requests_per_s, load.requests)
        lengths = (np.full(load.requests, tokens) for tokens in (load.prompt_tokens, load.output_tokens))
        workload = Workload(RequestTable.build((np.cumsum(gaps_s) * NS_PER_S).astype(np.int64), *lengths), OpenLoop())
    engine = EngineConfig(
        num_gpu_blocks=NUM_GPU_BLOCKS,
        block_size=BLOCK_SIZE,
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
        max_model_len=max_model_len,
    )
    return Scenario(workload, engine, cost, num_replicas=load.replicas)


def cost_model(path: Path | None) -> CostModel:
    """The artifact at `path`, or step times as the peer has them, so that both simulate the same service."""
    return CostModel.load(path) if path else CostModel(_polynomial())


def _polynomial() -> Artifact:
    """The one polynomial of ai-dynamo 1.4.1, as observed: its reports' times to first and second token follow from it.

    A decode takes 5.74 + 54.01 p − 25.74 p² ms, p being the share of the KV pool in use, here in four straight pieces (within
    0.4 ms); a prefill of t tokens 16.50142 + 0.01518344 t + 4.209989e-7 t² ms more.
    """
    pool_tokens = NUM_GPU_BLOCKS * BLOCK_SIZE
    knots = [pool_tokens * quarter // 4 for quarter in range(5)]
    decode_ns = [(5.74 + 54.01 * p - 25.74 * p * p) * 1e6 for p in (knot / pool_tokens for knot in knots)]
    pieces = {
        f"decode_context_tokens[{low}:{high}]": (decode_ns[i + 1] - decode_ns[i]) / (high - low)
        for i, (low, high) in enumerate(pairwise(knots))
    }
    decode = {"one": decode_ns[0], **pieces}
    mixed = {**decode, "one": decode_ns[0] + 16.50142e6, "prefill_tokens": 15_183.44, "prefill_tokens*prefill_tokens": 0.4209989}
    memory = {
        "num_gpu_blocks": NUM_GPU_BLOCKS, "block_size": BLOCK_SIZE, "max_model_len": 32_768,
        "max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS, "max_num_seqs": MAX_NUM_SEQS,
    }  # fmt: skip
    return Artifact.model_validate({
        "format_version": 1, "gpu": "none", "model": "polynomial", "weights": "none", "kv_cache_dtype": "auto", "tensor_parallel_size": 1,
        "engine": "ai-dynamo 1.4.1", "memory": memory, "overheads": {}, "domain": {}, "error": [],
        "step": {"full": {"gpu_ns": decode}, "piecewise": {"gpu_ns": mixed}, "none": {"gpu_ns": mixed}},
        "provenance": {"source": "ai-dynamo 1.4.1 replay reports", "sha256": "", "fitted_by": "bench.workloads"},
    })  # fmt: skip
