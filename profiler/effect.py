"""What an optimization does to an engine: its decode steps, prefills and KV pool beside those of plain bf16, as they were measured.

Curves are the shipped cost models, fitted to the measured steps that lie beside them. Nothing is simulated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from profiler.grid import CHUNKS
from profiler.idle import in_step
from profiler.profiled import from_raw
from profiler.raw import Raw, after_of
from simulator.artifacts.models import artifacts
from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.features import StepFeatures

Float64 = NDArray[np.float64]

CONTEXT = 1024
"""Tokens, at which the profiler's grid has every captured batch size."""
NEAR = 64
"""A measured context counts as the one asked for if it is as near as this, tokens."""
BEYOND = range(576, 4097, 64)
"""Batch sizes beyond the captured ones."""
EQUAL = 0.03
"""Times that differ by less are called equal: so near lie nine in ten steps of a second profile (`models/README.md`, repeats)."""


@dataclass(frozen=True, eq=False)
class Setting:
    """One measured way to serve a model: weights, KV-cache type and GPUs of a replica."""

    cost: CostModel
    engine: EngineConfig
    rows: pd.DataFrame
    """Of `Profiled.table`; empty: the measurements do not lie beside the cost model."""
    context: int = CONTEXT

    @classmethod
    def read(cls, path: Path, context: int = CONTEXT) -> Setting:
        """Of an artifact, and its measurements if they lie beside it.

        Raises:
            UserError: a file is unreadable.
        """
        # As in the profile, whose prompts come one by one.
        cost = CostModel(CostModel.load(path).artifact.model_copy(update={"sustained_ns": 0.0}))
        limits = ("max_model_len", "max_num_batched_tokens", "max_num_seqs", "block_size", "num_gpu_blocks")
        engine = EngineConfig(**{name: getattr(cost.artifact.memory, name) for name in limits})
        raw = Raw.read(path) if path.with_suffix(".profile.json.gz").is_file() else None
        return cls(cost, engine, pd.DataFrame() if raw is None else from_raw(raw, after_of(path)).table, context)

    @property
    def weights(self) -> str:
        """With the KV cache's type where that is not the model's: `awq, KV fp8`."""
        artifact = self.cost.artifact
        return artifact.weights + ("" if artifact.kv_cache_dtype == "auto" else f", KV {artifact.kv_cache_dtype}")

    @property
    def tp(self) -> int:
        """GPUs of a replica."""
        return self.cost.artifact.tensor_parallel_size

    @property
    def name(self) -> str:
        """`awq, KV fp8, TP 2`."""
        return self.weights + (f", TP {self.tp}" if self.tp > 1 else "")

    @property
    def pool_tokens(self) -> int:
        """Of a replica's KV cache."""
        return self.engine.usable_blocks * self.engine.block_size

    @cached_property
    def seats(self) -> int:
        """The largest batch of sequences of `context` tokens that the pool and `max_num_seqs` hold."""
        blocks = -(-(self.context + 1) // self.engine.block_size)
        return min(self.engine.usable_blocks // blocks, self.engine.max_num_seqs)

    @cached_property
    def batches(self) -> list[int]:
        """Batch sizes at which steps are compared: the captured ones, and some beyond, as far as decode batches were measured."""
        last = min(int(self.cost.artifact.domain["decode_seqs"][1]), self.engine.max_num_seqs)
        return [size for size in [*self.engine.graphs.full_sizes, *BEYOND] if size <= last]

    @cached_property
    def chunks(self) -> list[int]:
        """Tokens of the prompts that are compared: those of the profiler's grid."""
        return [chunk for chunk in CHUNKS if chunk <= self.engine.max_num_batched_tokens]

    def decode_s(self, batch: int) -> float:
        """GPU time of a decode step of `batch` sequences of `context` tokens, seconds."""
        return int(self.cost.gpu_ns(self._decode(batch))) / 1e9

    def step_s(self, batch: int) -> float:
        """The same step as served, seconds: where launching takes the engine's thread longer, the GPU waits for it."""
        launch_ns = self.cost.launch(self._decode(batch)).turn_ns + self.cost.artifact.overheads.schedule_ns
        return max(self.decode_s(batch), launch_ns / 1e9)

    def _decode(self, batch: int) -> StepFeatures:
        padded, mode = self.engine.graphs.pad(batch, True)
        total = batch * self.context
        return StepFeatures(0, 0, 0, 0, batch, total, self.context, 0, padded, mode, decode_in_step_seqs=in_step((self.context,) * batch))

    def prefill_s(self, chunk: int) -> float:
        """GPU time of a prompt of `chunk` tokens alone, seconds."""
        padded, mode = self.engine.graphs.pad(chunk, False)
        pairs = chunk * (chunk + 1) // 2
        return int(self.cost.gpu_ns(StepFeatures(1, chunk, chunk, pairs, padded_tokens=padded, graph_mode=mode))) / 1e9

    def tokens_per_gpu_s(self, batch: int) -> float:
        """Output tokens a second and GPU while `batch` sequences decode, as served."""
        return batch / self.step_s(batch) / self.tp

    @cached_property
    def best_batch(self) -> int:
        """The batch within the pool that emits the most tokens."""
        return max((batch for batch in {*self.batches, self.seats} if batch <= self.seats), key=self.tokens_per_gpu_s)

    @cached_property
    def measured_decode_s(self) -> pd.Series[float]:
        """Seconds by batch size: measured steps of equal contexts near `context`."""
        rows = self.rows
        if rows.empty:
            return pd.Series(dtype=float)
        longest = rows["decode_context_max_tokens"]
        even = (rows["decode_seqs"] * longest - rows["decode_context_tokens"]) < NEAR * rows["decode_seqs"]
        rows = rows[(rows["kind"] == "decode") & (abs(longest - self.context) < NEAR) & even]
        return _seconds(rows, "decode_seqs")

    @cached_property
    def measured_prefill_s(self) -> pd.Series[float]:
        """Seconds by tokens: measured prompts alone, computed from their first token on."""
        rows = self.rows
        if rows.empty:
            return pd.Series(dtype=float)
        rows = rows[(rows["kind"] == "prefill") & (rows["prefill_seqs"] == 1) & (rows["prefill_context_tokens"] == rows["prefill_tokens"])]
        return _seconds(rows, "prefill_tokens")


def _seconds(rows: pd.DataFrame, by: str) -> pd.Series[float]:
    return ((rows["gpu_ns"] + rows["sample_ns"]) / 1e9).groupby(rows[by]).median().dropna()


@dataclass(frozen=True, eq=False)
class Ratio:
    """Times of one setting over another's, at sizes that both were measured for."""

    sizes: list[int]
    """Of batches, or tokens of prompts."""
    times: Float64
    """float64[n]: above 1 where it is slower."""
    within: int
    """Up to here both pools hold the batch; beyond, one engine would need more memory than it has."""
    measured: pd.Series[float]
    """By size: of steps that were measured of both."""

    @property
    def slower(self) -> list[tuple[int, int, float]]:
        """Ranges of sizes where it is slower: (first, last, the worst ratio there). A single faster size ends none: round ones are."""
        ranges: list[tuple[int, int]] = []
        for i in np.flatnonzero(self.times > 1 + EQUAL).tolist():
            first = ranges.pop()[0] if ranges and i - ranges[-1][1] <= 2 else i
            ranges.append((first, i))
        return [(self.sizes[first], self.sizes[last], float(self.times[first : last + 1].max())) for first, last in ranges]

    @property
    def deviation(self) -> float:
        """Median distance of the curves' ratio from the measured one, where a step was measured of both."""
        fitted = np.interp(self.measured.index.to_numpy(float), self.sizes, self.times)
        return float(np.median(abs(fitted / self.measured.to_numpy() - 1)))


@dataclass(frozen=True, eq=False)
class Effect:
    """A setting beside the one it is compared with."""

    setting: Setting
    base: Setting

    @cached_property
    def decode(self) -> Ratio:
        """Of decode steps, by batch size."""
        ours, base = self.setting, self.base
        within = min(ours.seats, base.seats)
        sizes = sorted(size for size in {*ours.batches, within} if size <= base.batches[-1])
        values = np.array([ours.decode_s(size) / base.decode_s(size) for size in sizes])
        return Ratio(sizes, values, within, (ours.measured_decode_s / base.measured_decode_s).dropna())

    @cached_property
    def prefill(self) -> Ratio:
        """Of prefills, by tokens."""
        ours, base = self.setting, self.base
        sizes = [size for size in ours.chunks if size in base.chunks]
        values = np.array([ours.prefill_s(size) / base.prefill_s(size) for size in sizes])
        return Ratio(sizes, values, sizes[-1], (ours.measured_prefill_s / base.measured_prefill_s).dropna())

    @property
    def tokens_per_gpu(self) -> float:
        """The most output tokens a second and GPU, over the base's."""
        ours, base = self.setting, self.base
        return ours.tokens_per_gpu_s(ours.best_batch) / base.tokens_per_gpu_s(base.best_batch)

    @property
    def pool(self) -> float:
        """The replica's KV pool, over the base's."""
        return self.setting.pool_tokens / self.base.pool_tokens


@dataclass(frozen=True, eq=False)
class Measured:
    """Everything that was measured of one model shape on one kind of GPU, without speculation (`conf/crossover.yaml` asks about that)."""

    gpu: str
    model: str
    settings: list[Setting]
    """bf16 first, then by weights; fewer GPUs first."""

    @property
    def plain(self) -> str:
        """The weights with which the others are compared: bf16, or, where one GPU is too small for it, those measured first."""
        return self.settings[0].weights

    def base_of(self, setting: Setting) -> Setting | None:
        """Plain weights on as many GPUs, else on the nearest number; these are compared with those on the fewest. None: it is itself."""
        plain = [each for each in self.settings if each.weights == self.plain]
        base = plain[0] if setting.weights == self.plain else min(plain, key=lambda each: abs(each.tp - setting.tp))
        return None if base is setting else base

    @cached_property
    def effects(self) -> list[Effect]:
        """Every setting that there is something to compare with."""
        return [Effect(setting, base) for setting in self.settings if (base := self.base_of(setting))]


def measured(root: Path, context: int = CONTEXT) -> Iterator[Measured]:
    """All that lies below `root` (a `models/` folder), by GPU and model.

    Raises:
        UserError: a file is unreadable.
    """
    for (gpu, model), paths in groupby(artifacts(root), key=lambda path: path.relative_to(root).parts[:2]):
        plain = [path for path in paths if CostModel.load(path).artifact.speculation is None]
        settings = [Setting.read(path, context) for path in plain]
        yield Measured(gpu, model, sorted(settings, key=lambda each: (each.weights != "bf16", each.weights, each.tp)))
