"""What one engine is told at its start, under vLLM's own option names, and the CUDA graphs that follow from it."""

from __future__ import annotations

from bisect import bisect_left
from enum import IntEnum
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class GraphMode(IntEnum):
    """How a step is launched (vLLM 0.26 `CUDAGraphMode` as used by FULL_AND_PIECEWISE)."""

    NONE = 0
    PIECEWISE = 1
    FULL = 2


class SpeculativeConfig(BaseModel):
    """vLLM's `speculative_config`, as far as scheduling depends on it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    method: Literal["ngram", "draft_model", "eagle", "eagle3"]
    num_speculative_tokens: int = Field(ge=1)

    @property
    def name(self) -> str:
        """As cost models are named by: `eagle3-k3`."""
        return f"{self.method}-k{self.num_speculative_tokens}"

    @property
    def uses_eagle(self) -> bool:
        """Whether drafts are made from the target's hidden states: then steps are scheduled asynchronously, by model runner V2."""
        return self.method in ("eagle", "eagle3")

    @property
    def num_lookahead_tokens(self) -> int:
        """Slots that the drafter writes to beyond the step's own tokens (vLLM 0.26 `v1/core/sched/scheduler.py`)."""
        return 0 if self.method == "ngram" else self.num_speculative_tokens


class EngineConfig(BaseModel):
    """Options of one vLLM engine; the defaults are those of `vllm serve` 0.26 on an H100 or H200.

    `num_gpu_blocks` and `block_size` are filled in from the cost model's measured memory unless given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    max_model_len: int = Field(32768, ge=2)
    max_num_batched_tokens: int = Field(8192, ge=1)
    max_num_seqs: int = Field(1024, ge=1)
    block_size: int = Field(16, ge=1)
    num_gpu_blocks: int = Field(ge=2)
    """Blocks of the pool, vLLM's null block included (one block is never handed out)."""
    enable_chunked_prefill: bool = True
    enable_prefix_caching: bool = True
    """Costs time only where there is something to find: prompts in common, or a request that was preempted."""
    long_prefill_token_threshold: int = Field(0, ge=0)
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    scheduler_reserve_full_isl: bool = True
    watermark: float = Field(0.0, ge=0.0, lt=1.0)
    async_scheduling: bool = True
    enforce_eager: bool = False
    vllm_version: Literal["0.26", "0.32"] = "0.26"
    """Whose scheduler it is. The two differ in two rules (docs/adr/0005-conformance.md)."""
    speculative: SpeculativeConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_async(cls, options: Any) -> Any:
        """vLLM 0.26 `config/vllm.py`: n-gram and draft models need the tokens of a step before they can draft for the next."""
        drafting = options.get("speculative") if isinstance(options, dict) else None
        method = drafting.get("method") if isinstance(drafting, dict) else getattr(drafting, "method", None)
        if method in ("ngram", "draft_model"):
            return {"async_scheduling": False, **options}
        return options

    @model_validator(mode="before")
    @classmethod
    def _seats_within_budget(cls, options: Any) -> Any:
        """vLLM 0.26 `engine/arg_utils.py`: seats that nobody asked for are no more than the tokens of a step."""
        budget = options.get("max_num_batched_tokens") if isinstance(options, dict) else None
        if isinstance(budget, int) and 1 <= budget < cls.model_fields["max_num_seqs"].default and "max_num_seqs" not in options:
            return {"max_num_seqs": budget, **options}
        return options

    @model_validator(mode="after")
    def _a_token_for_every_seat(self) -> EngineConfig:
        """vLLM 0.26 `config/scheduler.py` `verify_max_model_len`."""
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(f"max_num_batched_tokens {self.max_num_batched_tokens} must be at least max_num_seqs {self.max_num_seqs}")
        return self

    @model_validator(mode="after")
    def _can_speculate(self) -> EngineConfig:
        if self.speculative is None:
            return self
        if self.async_scheduling and not self.speculative.uses_eagle:
            raise ValueError(f"async_scheduling: vLLM has none with {self.speculative.method}; leave it out")
        if self.vllm_version != "0.26":
            raise ValueError("vllm_version: speculation is simulated as vLLM 0.26 schedules it")
        if self.max_num_scheduled_tokens < 1:
            raise ValueError("max_num_batched_tokens must exceed max_num_seqs: a draft model takes one more token of each")
        return self

    @model_validator(mode="after")
    def _one_request_fits(self) -> EngineConfig:
        capacity_tokens = self.usable_blocks * self.block_size
        if self.max_model_len > capacity_tokens:
            raise ValueError(
                f"max_model_len {self.max_model_len} does not fit into the KV cache of {capacity_tokens} tokens"
                f" ({self.usable_blocks} blocks of {self.block_size}): lower max_model_len or give more blocks"
            )
        if not self.enable_chunked_prefill and self.max_num_batched_tokens < self.max_model_len:
            raise ValueError("enable_chunked_prefill: false needs max_num_batched_tokens of at least max_model_len")
        return self

    @property
    def usable_blocks(self) -> int:
        """Blocks that requests can hold: all but the null block (vLLM `v1/core/block_pool.py`)."""
        return self.num_gpu_blocks - 1

    @property
    def depth(self) -> int:
        """Steps that may be in flight: 2 with asynchronous scheduling (`step_with_batch_queue`), else 1."""
        return 2 if self.async_scheduling else 1

    @property
    def decode_query_len(self) -> int:
        """Tokens of a decoding sequence in one step: one, and the drafts that are verified with it."""
        return 1 if self.speculative is None else 1 + self.speculative.num_speculative_tokens

    @property
    def max_num_scheduled_tokens(self) -> int:
        """The token budget of a step: less one a seat for a draft model (vLLM 0.26 `config/vllm.py` `_set_max_num_scheduled_tokens`)."""
        drafted = self.speculative is not None and self.speculative.method == "draft_model"
        return self.max_num_batched_tokens - self.max_num_seqs * drafted

    @cached_property
    def graphs(self) -> CudaGraphs:
        """The CUDA graphs that vLLM captures for these options."""
        return CudaGraphs.of(self)


class CudaGraphs:
    """Captured batch sizes, and what a batch is padded to.

    Source: vLLM 0.26 `config/vllm.py` `_set_cudagraph_sizes`, mode FULL_AND_PIECEWISE: uniform decode batches run as one
    full graph, mixed batches up to the largest captured size run piecewise, larger ones without a graph and unpadded. With drafts a
    uniform decode has 1 + K tokens a sequence, and full graphs have multiples of that: with model runner V1 piecewise ones, too
    (`config/compilation.py` `adjust_cudagraph_sizes_for_spec_decode`), with V2 not (`v1/worker/gpu/cudagraph_utils.py`).
    """

    def __init__(self, piecewise_sizes: list[int], full_sizes: list[int]) -> None:
        self.piecewise_sizes = piecewise_sizes
        self.full_sizes = full_sizes
        self._uniform = self._table(piecewise_sizes, full_sizes)
        # A batch that needs a size captured only for uniform decodes runs without a graph.
        self._mixed = self._table(piecewise_sizes, [], upto=full_sizes)

    @classmethod
    def of(cls, engine: EngineConfig) -> CudaGraphs:
        """The sizes vLLM captures for `engine`."""
        if engine.enforce_eager:
            return cls([], [])
        query_len = engine.decode_query_len
        largest = min(2 * engine.max_num_seqs * query_len, 512, engine.max_num_batched_tokens)
        sizes = [s for s in (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)) if s <= largest]
        if engine.max_num_batched_tokens == largest and largest not in sizes:
            sizes.append(largest)
        rounded = sorted({r for s in sizes if (r := -(-s // query_len) * query_len) <= sizes[-1]})
        if engine.speculative is not None and not engine.speculative.uses_eagle:
            sizes = rounded
        return cls(sizes, [s for s in rounded if s <= engine.max_num_seqs * query_len])

    @staticmethod
    def _table(piecewise: list[int], full: list[int], upto: list[int] | None = None) -> list[tuple[int, GraphMode]]:
        sizes = sorted({*piecewise, *full, *(upto or [])})
        modes = dict.fromkeys(piecewise, GraphMode.PIECEWISE) | dict.fromkeys(full, GraphMode.FULL)
        table = []
        for tokens in range(sizes[-1] + 1) if sizes else ():
            size = sizes[bisect_left(sizes, tokens)]
            table.append((size, modes[size]) if size in modes else (tokens, GraphMode.NONE))
        return table

    def pad(self, tokens: int, uniform_decode: bool) -> tuple[int, GraphMode]:
        """(tokens after padding, graph mode) of a batch of `tokens` tokens; `uniform_decode`: `decode_query_len` of every sequence."""
        table = self._uniform if uniform_decode else self._mixed
        return table[tokens] if tokens < len(table) else (tokens, GraphMode.NONE)
