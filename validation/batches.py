"""Error of the cost model alone: the batches that the engine really ran, and the times that the model gives them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.artifacts.attention import Attention
from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.features import StepFeatures
from simulator.request import RequestTable
from simulator.step.clock import EngineClock
from simulator.workload.base import NS_PER_S
from validation.contexts import Decodes

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

WINDOW = 6
"""Steps whose times are summed: with one GPU, a step's time shows up in two gaps between results, in parts that change."""

NEAR_PROMPTS = 3
"""Steps before and after one with a prompt whose gaps hold parts of its time."""

FEWEST_WINDOWS = 10
"""Of fewer no median is told."""


@dataclass(frozen=True)
class WindowErrors:
    """Over windows that do not overlap and do not span idle times: predicted / measured − 1."""

    windows: int
    median_abs: float
    p90_abs: float
    signed_sum: float
    """Of the sums over all windows."""


@dataclass(frozen=True)
class BatchErrors:
    """The cost model on the measured batches."""

    all_steps: WindowErrors
    with_prefill: WindowErrors | None
    """Windows in which a prompt was computed; None: there are too few to tell."""
    single_steps: WindowErrors | None
    """Windows of one step: those that decode, with none but their like within `NEAR_PROMPTS`; None: there are too few to tell."""
    token_time: float
    """Error of the mean gap between a sequence's tokens: gaps weighted with the sequences that decode in them."""


def batch_errors(
    steps: pd.DataFrame, requests: RequestTable, latencies: dict[str, Float64], engine: EngineConfig, cost: CostModel
) -> BatchErrors | None:
    """Holds predicted against measured times of the recorded batches; None: the engine was hardly ever busy for a window's steps.

    `latencies`: the measured ones, as `Decodes.of` takes them.
    """
    measured, predicted, prefill, weight = [], [], [], []
    replicas = [rows for _, rows in steps.groupby("replica")]
    for replica, rows in enumerate(replicas):
        first = first_of_runs(rows, engine.depth)
        decodes = Decodes.of(rows, requests, latencies, replica, len(replicas))
        attention = cost.artifact.attention
        saved = _saved_tokens(rows, engine, attention)
        features = _features(rows, decodes.longest(rows), decodes.idle_tokens(rows, attention), saved, engine)
        ends_s = _predicted_ends_s(features, rows["schedule_s"].to_numpy(np.float64), first, engine, cost)
        known = ~first
        measured.append(np.where(known, rows["update_s"].diff(), np.nan))
        predicted.append(np.where(known, np.diff(ends_s, prepend=0.0), np.nan))
        prefill.append(rows["prefill_tokens"].to_numpy() > 0)
        weight.append(np.where(known, rows["decode_seqs"].to_numpy(np.float64), 0.0))
    both = np.column_stack([np.concatenate(column) for column in (measured, predicted, prefill)]).astype(np.float64)
    weights = np.concatenate(weight)
    token_s = [np.nansum(both[:, column] * weights) for column in (0, 1)]
    sums = _window_sums(both)
    if len(sums) < FEWEST_WINDOWS:
        return None
    near = np.convolve(both[:, 2], np.ones(2 * NEAR_PROMPTS + 1), mode="same") > 0
    single = both[~near & np.isfinite(both).all(axis=1)]
    return BatchErrors(_errors(sums), _if_enough(sums[sums[:, 2] > 0]), _if_enough(single), float(token_s[1] / token_s[0] - 1))


def first_of_runs(steps: pd.DataFrame, depth: int) -> NDArray[np.bool_]:
    """bool[k]: the engine was empty before this step, so that its duration is not the gap to the result before it.

    With two steps in flight the next one is chosen before the last result is there; a synchronous engine's always comes after it.
    """
    late = steps["schedule_s"].to_numpy()[1:] > steps["update_s"].to_numpy()[:-1]
    if depth == 1:
        late &= steps["decode_seqs"].to_numpy()[1:] == 0
    return np.concatenate([[True], late])


def _saved_tokens(rows: pd.DataFrame, engine: EngineConfig, attention: Attention | None) -> Int64:
    """int64[k]: of the decodes' contexts, what is saved where sequences hold the same blocks: more than the pool says are held."""
    if attention is None or not engine.enable_prefix_caching or "kv_usage" not in rows:
        return np.zeros(len(rows), np.int64)
    decode_seqs, seqs = rows["decode_seqs"], rows["decode_seqs"] + rows["prefill_seqs"]
    # The last block of a sequence is half full in the mean.
    of_sequences = (rows["decode_context_tokens"] + rows["prefill_context_tokens"]) / engine.block_size + seqs / 2
    shared_blocks = np.maximum(of_sequences - rows["kv_usage"] * engine.usable_blocks, 0.0)
    shared_tokens = shared_blocks * engine.block_size * decode_seqs / np.maximum(seqs, 1)
    return np.array([attention.saved_tokens(int(tokens)) for tokens in shared_tokens], np.int64)


def _features(rows: pd.DataFrame, longest: Int64, idle: Int64, saved: Int64, engine: EngineConfig) -> list[StepFeatures]:
    tokens, seqs = rows["prefill_tokens"].to_numpy(np.int64), rows["prefill_seqs"].to_numpy(np.int64)
    decode = rows["decode_seqs"].to_numpy(np.int64)
    verify = rows["verify_tokens"].to_numpy(np.int64) if "verify_tokens" in rows else np.zeros_like(decode)
    uniform = (seqs == 0) & (decode + verify == decode * engine.decode_query_len)
    launched = [engine.graphs.pad(int(n), bool(each)) for n, each in zip(tokens + decode + verify, uniform, strict=True)]
    pads, modes = zip(*launched, strict=True)
    contexts = rows["decode_context_tokens"].to_numpy(np.int64) - saved, longest, verify
    columns = seqs, tokens, rows["prefill_context_tokens"], _attention(rows), decode, *contexts, pads
    numbers = (np.asarray(column).tolist() for column in columns)
    return [StepFeatures(*row) for row in zip(*numbers, modes, idle.tolist(), strict=True)]


def _attention(rows: pd.DataFrame) -> Int64:
    """int64[k]: pairs of a chunk's token and one that it attends to. Exact for one chunk; several are taken as equally long."""
    tokens, seqs, ends = (rows[name].to_numpy(np.float64) for name in ("prefill_tokens", "prefill_seqs", "prefill_context_tokens"))
    chunk = tokens / np.maximum(seqs, 1)
    products = rows["prefill_attention_tokens"].to_numpy(np.float64) if "prefill_attention_tokens" in rows else chunk * ends
    # Prompts that are computed whole: half of their squares, however unequal they are.
    pairs = np.where(ends == tokens, (products + tokens) / 2, products - seqs * chunk * (chunk - 1) / 2)
    whole: Int64 = np.rint(pairs).astype(np.int64)
    return whole


def _predicted_ends_s(
    features: list[StepFeatures], schedule_s: Float64, first: NDArray[np.bool_], engine: EngineConfig, cost: CostModel
) -> Float64:
    """float64[k]: when each result would be handled, by the engine's two clocks; after an idle time they start where it ended."""
    handled_ns = np.zeros(len(features), np.int64)
    clock, start, now_ns = EngineClock(0), 0, 0
    for step, its in enumerate(features):
        if first[step]:
            clock, start = EngineClock(cost.artifact.overheads.schedule_ns), step
            now_ns = round(schedule_s[step] * NS_PER_S)
        elif step - start >= engine.depth:
            now_ns = int(handled_ns[step - engine.depth])
        gpu_end_ns = clock.launch(now_ns, int(cost.gpu_ns(its)), cost.launch(its))
        # The step before is handled once the thread has launched this one.
        if engine.depth == 2 and step > start:
            handled_ns[step - 1] = max(handled_ns[step - 1], clock.cpu_free_ns)
        handled_ns[step] = gpu_end_ns
    return handled_ns / NS_PER_S


def _window_sums(rows: Float64) -> Float64:
    """float64[m, columns]: sums over windows of successive rows, none of them NaN."""
    sums, low = [], 0
    for high in [*np.flatnonzero(~np.isfinite(rows).all(axis=1)), len(rows)]:
        usable = (high - low) // WINDOW * WINDOW
        sums.append(rows[low : low + usable].reshape(-1, WINDOW, rows.shape[1]).sum(axis=1))
        low = high + 1
    return np.concatenate(sums)


def _if_enough(sums: Float64) -> WindowErrors | None:
    return _errors(sums) if len(sums) >= FEWEST_WINDOWS else None


def _errors(sums: Float64) -> WindowErrors:
    error = np.abs(sums[:, 1] / sums[:, 0] - 1)
    median, p90 = np.quantile(error, [0.5, 0.9])
    return WindowErrors(len(sums), float(median), float(p90), float(sums[:, 1].sum() / sums[:, 0].sum() - 1))
