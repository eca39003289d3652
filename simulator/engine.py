"""What one engine is told at its start, under vLLM's own option names, and the CUDA graphs that follow from it."""

from __future__ import annotations

from bisect import bisect_left
from enum import IntEnum
from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class GraphMode(IntEnum):
    """How a step is launched (vLLM 0.26 `CUDAGraphMode` as used by FULL_AND_PIECEWISE)."""

    NONE = 0
    PIECEWISE = 1
    FULL = 2


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
    enable_prefix_caching: bool = False
    """vLLM's own default is on. Here whoever measures without it must not pay for it: a config's `opt` decides."""
    long_prefill_token_threshold: int = Field(0, ge=0)
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    scheduler_reserve_full_isl: bool = True
    watermark: float = Field(0.0, ge=0.0, lt=1.0)
    async_scheduling: bool = True
    enforce_eager: bool = False
    vllm_version: Literal["0.26", "0.32"] = "0.26"
    """Whose scheduler it is. The two differ in two rules (docs/adr/0005-conformance.md)."""

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

    @cached_property
    def graphs(self) -> CudaGraphs:
        """The CUDA graphs that vLLM captures for these options."""
        return CudaGraphs.of(self)


class CudaGraphs:
    """Captured batch sizes, and what a batch is padded to.

    Source: vLLM 0.26 `config/vllm.py` `_set_cudagraph_sizes`, mode FULL_AND_PIECEWISE: uniform decode batches run as one
    full graph, mixed batches up to the largest captured size run piecewise, larger ones without a graph and unpadded.
    """

    def __init__(self, piecewise_sizes: list[int], full_sizes: list[int]) -> None:
        self.piecewise_sizes = piecewise_sizes
        self.full_sizes = full_sizes
        self._uniform = self._table(full_sizes, GraphMode.FULL)
        self._mixed = self._table(piecewise_sizes, GraphMode.PIECEWISE)

    @classmethod
    def of(cls, engine: EngineConfig) -> CudaGraphs:
        """The sizes vLLM captures for `engine`."""
        if engine.enforce_eager:
            return cls([], [])
        largest = min(2 * engine.max_num_seqs, 512, engine.max_num_batched_tokens)
        sizes = [s for s in (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)) if s <= largest]
        if engine.max_num_batched_tokens == largest and largest not in sizes:
            sizes.append(largest)
        return cls(sizes, [s for s in sizes if s <= engine.max_num_seqs])

    @staticmethod
    def _table(sizes: list[int], mode: GraphMode) -> list[tuple[int, GraphMode]]:
        return [(sizes[bisect_left(sizes, tokens)], mode) for tokens in range(sizes[-1] + 1)] if sizes else []

    def pad(self, tokens: int, uniform_decode: bool) -> tuple[int, GraphMode]:
        """(tokens after padding, graph mode) of a batch of `tokens` tokens; `uniform_decode`: every sequence decodes."""
        table = self._uniform if uniform_decode else self._mixed
        if tokens < len(table):
            return table[tokens]
        if uniform_decode and tokens < len(self._mixed):
            return self._mixed[tokens]
        return tokens, GraphMode.NONE
