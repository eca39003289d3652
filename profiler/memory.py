"""How many KV blocks an engine gets: read from one start, predicted for other settings."""

from __future__ import annotations

import math

import numpy as np
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

    def predict_blocks(self, *, gpu_memory_utilization: float, max_num_batched_tokens: int, max_num_seqs: int) -> int | None:
        """`num_gpu_blocks` that vLLM would report under other settings; None where the start did not tell enough (a CPU).

        A result below 1 means that the model does not fit. `max_model_len` takes no memory, but must fit into the blocks.
        """
        parts = (self.weights_bytes, self.non_torch_bytes)
        if self.total_bytes is None or self.activation_peak_bytes is None or any(part is None for part in parts):
            return None
        taken = sum(part for part in parts if part is not None) + (self.graphs_estimate_bytes or 0)
        peak = (
            self.activation_peak_bytes
            + self._peak(max_num_batched_tokens, max_num_seqs)
            - self._peak(self.max_num_batched_tokens, self.max_num_seqs)
        )
        available = math.ceil(self.total_bytes * gpu_memory_utilization) - taken - peak
        return math.floor(available / self.bytes_per_block)

    def _peak(self, tokens: int, seqs: int) -> float:
        """Peak of the profiling run: linear in the token budget (activations) and in the seats (logits), by the measured settings.

        The two do not add up: logits are made after the last layer's activations are gone, so the larger of both rules, and the form
        is `max(a·tokens, b·seqs)` with an offset; with the few settings measured, the piecewise-linear surface through them.
        """
        if not self.activation_peaks:
            return 0.0
        table: dict[int, list[tuple[int, int]]] = {}
        for t, s, peak in self.activation_peaks:
            table.setdefault(s, []).append((t, peak))
        levels = sorted(table)
        at = [_line(sorted(table[level]), tokens) for level in levels]
        return _line(list(zip(levels, at, strict=True)), seqs)


def _line(knots: list[tuple[int, int]] | list[tuple[int, float]], x: float) -> float:
    """The line through sorted `knots` at `x`, going on beyond the last as its last piece does."""
    if len(knots) == 1:
        return float(knots[0][1])
    xs, ys = np.array(knots, dtype=float).T
    i = int(np.clip(np.searchsorted(xs, x) - 1, 0, len(xs) - 2))
    return float(ys[i] + (ys[i + 1] - ys[i]) * (x - xs[i]) / (xs[i + 1] - xs[i]))
