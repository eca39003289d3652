"""Where the memory of a GPU went when an engine started; `simulator/artifacts/memory.py` predicts other settings from it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class MemoryAccount(BaseModel):
    """Where the memory of one GPU went at one start, bytes; source: vLLM `v1/worker/gpu_worker.py` `determine_available_memory`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    total_bytes: int | None
    free_at_start_bytes: int | None
    requested_bytes: int | None
    weights_bytes: int | None
    activation_peak_bytes: int | None
    non_torch_bytes: int | None
    graphs_estimate_bytes: int | None
    available_kv_bytes: int | None
    kv_cache_bytes: int
    model_runner: str
    num_gpu_blocks: int
    max_num_batched_tokens: int
    max_num_seqs: int
    activation_peaks: list[tuple[int, int, int]] = []
    """(token budget, seats, bytes): peaks of vLLM's profiling run repeated at other settings, the start's own among them."""

    @property
    def bytes_per_block(self) -> float:
        """Of one GPU, all layers."""
        return self.kv_cache_bytes / self.num_gpu_blocks
