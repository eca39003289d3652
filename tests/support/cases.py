"""Random traffic, engines and costs: small enough for a step-by-step engine, cramped enough to make every rule of the scheduler apply."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from simulator.artifacts.artifact import Overheads, Regime
from simulator.artifacts.attention import Attention
from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.request import RequestTable
from simulator.speculation import Acceptance


@dataclass(frozen=True)
class Case:
    """What one engine serves."""

    requests: RequestTable
    engine: EngineConfig
    cost: CostModel
    acceptance: Acceptance | None = None


class FineAttention(Attention):
    """So fine that contexts of a few dozen tokens are unequal."""

    block_tokens: ClassVar[int] = 4


def cost_model(
    gpu_ns: dict[str, float], launch_ns: dict[str, float] | None = None, lead_ns: dict[str, float] | None = None, **overheads: int
) -> CostModel:
    """A model with the same coefficients in every graph mode; `overheads` are the fields of `Overheads`."""
    regime = Regime(gpu_ns=gpu_ns, launch_ns=launch_ns or {}, lead_ns=lead_ns or {})
    parts = {"step": {"none": regime, "piecewise": regime, "full": regime}, "overheads": Overheads(**overheads)}
    return CostModel(CostModel.constant(1).artifact.model_copy(update=parts))


def random_case(seed: int, max_requests: int = 40) -> Case:
    """The same case for the same seed: times of microseconds, prompts and answers of a few dozen tokens, pools for one to four of them."""
    rng = np.random.default_rng(seed)
    cost = random_cost(rng)
    requests = random_requests(rng, int(rng.integers(4, max_requests + 1)), cost)
    engine = random_engine(rng, requests)
    cost = attending(cost, rng) if rng.random() < 0.5 else cost
    return Case(requests, engine, with_workers(cost, rng) if rng.random() < 0.3 else cost)


def random_requests(rng: np.random.Generator, n: int, cost: CostModel) -> RequestTable:
    """Arrivals in bursts, often at the very instant of others or of step ends; endings by `max_tokens` and by end of sequence."""
    step_ns = cost.artifact.step["none"].gpu_ns["one"]
    grid_ns = int(rng.choice([1, step_ns // 2, step_ns]))
    mean_gap_ns = step_ns * float(rng.choice([0.5, 3.0, 10.0, 40.0]))
    arrival_ns = np.cumsum(rng.exponential(mean_gap_ns, n) * (rng.random(n) < 0.7)).astype(np.int64) // grid_ns * grid_ns
    output_tokens = rng.integers(1, rng.choice([3, 30, 80]) + 1, n)
    ends_itself = rng.random(n) < rng.choice([0.0, 0.5, 1.0])
    return RequestTable.build(
        arrival_ns,
        rng.integers(1, rng.choice([2, 20, 60]) + 1, n),
        output_tokens,
        max_tokens=output_tokens + ends_itself * rng.integers(1, 100, n),
        visible_token=rng.integers(1, output_tokens + 2),
        priority=rng.integers(0, 3, n),
    )


def random_engine(rng: np.random.Generator, requests: RequestTable) -> EngineConfig:
    """Often too few blocks for the requests it runs, too few tokens a step, or too few seats."""
    block_size = int(rng.choice([1, 2, 4, 16]))
    longest = int((requests.prompt_tokens + requests.output_tokens).max())
    max_model_len = longest + int(rng.choice([0, 1, 30]))
    usable_blocks = int(-(-max_model_len // block_size) * rng.choice([1.0, 1.3, 2.0, 4.0]))
    chunked = bool(rng.random() < 0.85)
    budget = int(rng.choice([2, 5, 16, 64])) if chunked else max_model_len + int(rng.integers(0, 64))
    max_num_seqs = int(rng.choice([1, 3, 8, 24]))
    return EngineConfig(
        max_model_len=max_model_len,
        max_num_batched_tokens=max(budget, max_num_seqs),  # vLLM wants a token for every seat
        max_num_seqs=max_num_seqs,
        block_size=block_size,
        num_gpu_blocks=usable_blocks + 1,
        enable_chunked_prefill=chunked,
        enable_prefix_caching=False,
        long_prefill_token_threshold=int(rng.choice([0, 0, 1, 3, 12])),
        scheduling_policy=str(rng.choice(["fcfs", "priority"])),
        scheduler_reserve_full_isl=bool(rng.random() < 0.7),
        watermark=float(rng.choice([0.0, 0.0, 0.1, 0.4])),
        async_scheduling=bool(rng.random() < 0.6),
        enforce_eager=bool(rng.random() < 0.2),
    )


def random_cost(rng: np.random.Generator) -> CostModel:
    """Bound by the GPU, by the thread that launches, or now by the one and now by the other."""
    step_ns = int(rng.choice([1_000, 1_500]))
    gpu_ns = {"one": step_ns}
    if rng.random() < 0.7:
        gpu_ns |= {"prefill_tokens": 31.3, "padded_tokens": 17.7, "decode_context_tokens": 0.37, "decode_context_max_tokens[40:70]": 11.9}
    if rng.random() < 0.3:
        gpu_ns |= {"decode_seqs*decode_context_max_tokens[30:]": 1.71, "prefill_attention_tokens": 0.21}
    launch_ns = [{}, {"one": 400, "prefill_seqs": 700}, {"one": 900, "decode_seqs": 60.5}, {"one": 2_500}][int(rng.integers(4))]
    if rng.random() < 0.4:
        return cost_model(gpu_ns, launch_ns)
    times = {name: int(rng.choice([0, 100, 700, step_ns])) for name in ("ingress_ns", "egress_ns", "schedule_ns")}
    times["egress_per_seq_ns"] = {100: 13, 700: 250}.get(times["egress_ns"], 0)
    # The part of a launch before its first kernel; cut to the launch where it would be longer.
    lead_ns = {0: {}, 100: {"one": 300}, 700: {"one": 200, "decode_seqs": 40.25, "prefill_seqs": 2_000}}.get(times["egress_ns"], {})
    return cost_model(gpu_ns, launch_ns, lead_ns, **times)


def with_workers(cost: CostModel, rng: np.random.Generator) -> CostModel:
    """The same, but its launches are other processes' work."""
    hand_over_ns = [{"one": 150}, {"one": 60, "decode_seqs": 7.5}, {"one": 1_700}][int(rng.integers(3))]
    step = {mode: regime.model_copy(update={"hand_over_ns": hand_over_ns}) for mode, regime in cost.artifact.step.items()}
    return CostModel(cost.artifact.model_copy(update={"step": step}))


def attending(cost: CostModel, rng: np.random.Generator) -> CostModel:
    """The same with a price for what multiprocessors wait for."""
    artifact = cost.artifact
    attention = FineAttention(kv_heads=int(rng.choice([1, 2, 4])), multiprocessors=int(rng.choice([3, 8, 12])), shared_read=0.37)
    idle_ns = {"decode_idle_tokens": float(rng.choice([0.91, 7.3]))}
    step = {mode: regime.model_copy(update={"gpu_ns": regime.gpu_ns | idle_ns}) for mode, regime in artifact.step.items()}
    return CostModel(artifact.model_copy(update={"step": step, "attention": attention}))


def random_speculative_case(seed: int, max_requests: int = 40) -> Case:
    """A random case whose engine verifies drafts, at a price; in every fifth of them prompts are one token long."""
    case = random_case(seed, max_requests)
    rng = np.random.default_rng([seed, 2])
    drafts = int(rng.choice([1, 2, 3, 5]))
    method = str(rng.choice(["ngram", "draft_model", "eagle3"], p=[0.25, 0.25, 0.5]))
    options = case.engine.model_dump() | {"speculative": {"method": method, "num_speculative_tokens": drafts}}
    if method != "eagle3":
        options["async_scheduling"] = False
    if options["long_prefill_token_threshold"]:
        options["long_prefill_token_threshold"] = max(options["long_prefill_token_threshold"], 1 + drafts)
    options["max_num_batched_tokens"] += options["max_num_seqs"] * (method == "draft_model")
    acceptance = Acceptance(
        tuple(np.sort(rng.random(drafts))[::-1].tolist()),
        proposed=float(rng.choice([1.0, 0.6])) if method == "ngram" else 1.0,
        correlation=float(rng.choice([0.0, 0.5])),
        growth=((0, 1.0), (40, float(rng.choice([0.5, 1.0, 1.6])))),
    )
    requests = case.requests
    if seed % 5 == 0:
        requests = replace(requests, prompt_tokens=np.ones(len(requests), np.int64))
    artifact = case.cost.artifact
    step = {mode: regime.model_copy(update={"gpu_ns": regime.gpu_ns | {"verify_tokens": 13.3}}) for mode, regime in artifact.step.items()}
    return Case(requests, EngineConfig(**options), CostModel(artifact.model_copy(update={"step": step})), acceptance)
