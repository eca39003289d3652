"""How many KV blocks an engine gets under other settings than those at which its cost model was measured."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from simulator.artifacts.artifact import Memory, MemoryParts
from simulator.errors import UserError


def num_gpu_blocks(memory: Memory, *, gpu_memory_utilization: float, max_num_batched_tokens: int, max_num_seqs: int) -> int | None:
    """`num_gpu_blocks` that vLLM would report; None where the measured start did not tell enough (a CPU, a trace).

    A result below 1 means that the model does not fit. `max_model_len` takes no memory, but must fit into the blocks.
    Source: vLLM 0.26 `v1/worker/gpu_worker.py` `determine_available_memory`.
    """
    measured = (memory.gpu_memory_utilization, memory.max_num_batched_tokens, memory.max_num_seqs)
    if (gpu_memory_utilization, max_num_batched_tokens, max_num_seqs) == measured:
        return memory.num_gpu_blocks
    if memory.parts is None:
        return None
    return accounted(
        memory,
        memory.parts,
        gpu_memory_utilization=gpu_memory_utilization,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_seqs=max_num_seqs,
    )


def accounted(memory: Memory, parts: MemoryParts, *, gpu_memory_utilization: float, max_num_batched_tokens: int, max_num_seqs: int) -> int:
    """The blocks that follow from `parts` alone, whatever `memory.num_gpu_blocks` says; `memory` tells the settings of their start."""
    taken = parts.weights_bytes + parts.non_torch_bytes + parts.graphs_estimate_bytes + parts.activation_peak_bytes
    # Smaller settings free nothing: a start at 2,048 tokens and 256 seats peaked at 1.04 GiB, one at 8,192 and 1,024 at 1.13, though runs
    # repeated within one start say 0.26 and 1.03. What vLLM takes once, at its first run, is the floor.
    more = _peak(parts, max_num_batched_tokens, max_num_seqs) - _peak(parts, memory.max_num_batched_tokens, memory.max_num_seqs)
    available = math.ceil(parts.total_bytes * gpu_memory_utilization) - taken - max(more, 0.0)
    return math.floor(available / parts.bytes_per_block)


def blocks_for(memory: Memory, options: dict[str, Any], gpu_memory_utilization: Any) -> int:
    """`num_gpu_blocks` under a configuration's `engine` options, as they were written; as measured where nothing else can be told.

    Raises:
        UserError: the share of memory makes no sense, leaves no room, or the cost model cannot tell.
    """
    share = gpu_memory_utilization
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise UserError(f"engine.gpu_memory_utilization: greater than 0 and at most 1, not {share!r}")
    tokens, seqs = options["max_num_batched_tokens"], options["max_num_seqs"]
    if not (isinstance(tokens, int) and isinstance(seqs, int)):
        return memory.num_gpu_blocks  # the schema says what is wrong with them
    blocks = num_gpu_blocks(memory, gpu_memory_utilization=share, max_num_batched_tokens=tokens, max_num_seqs=seqs)
    if blocks is None and share != memory.gpu_memory_utilization:
        raise UserError("engine.gpu_memory_utilization: the cost model does not say where memory went; give engine.num_gpu_blocks_override")
    if blocks is not None and blocks < 2:
        raise UserError(f"engine.gpu_memory_utilization {share:g}: the model leaves no room for KV blocks; give more")
    return memory.num_gpu_blocks if blocks is None else blocks


def _peak(parts: MemoryParts, tokens: int, seqs: int) -> float:
    """Peak of the profiling run: linear in the token budget (activations) and in the seats (logits), by the measured settings.

    The two do not add up: logits are made after the last layer's activations are gone, so the larger of both rules, and the form
    is `max(a·tokens, b·seqs)` with an offset; with the few settings measured, the piecewise-linear surface through them.
    """
    if not parts.activation_peaks:
        return 0.0
    table: dict[int, list[tuple[int, float]]] = {}
    for t, s, peak in parts.activation_peaks:
        table.setdefault(s, []).append((t, peak))
    levels = sorted(table)
    return _line([(level, _line(sorted(table[level]), tokens)) for level in levels], seqs)


def _line(knots: list[tuple[int, float]], x: float) -> float:
    """The line through sorted `knots` at `x`; beyond the last it goes on as its last piece does, below the first it stays."""
    if len(knots) == 1 or x <= knots[0][0]:
        return float(knots[0][1])
    xs, ys = np.array(knots, dtype=float).T
    i = int(np.clip(np.searchsorted(xs, x) - 1, 0, len(xs) - 2))
    return float(ys[i] + (ys[i + 1] - ys[i]) * (x - xs[i]) / (xs[i + 1] - xs[i]))
