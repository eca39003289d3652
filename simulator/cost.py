"""What a step costs: a batch's composition in, nanoseconds out."""

from __future__ import annotations

import json
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from simulator.artifacts.artifact import Artifact, Logits, Memory, Overheads, Provenance, Regime
from simulator.engine import GraphMode
from simulator.errors import UserError
from simulator.features import TABLED, Column, StepFeatures, Term
from simulator.step.clock import Launch


class _Sum:
    """Σ coefficient × term, split into the part that stays and the part that moves within a steady decode."""

    def __init__(self, coefficients: dict[str, float]) -> None:
        terms = [(Term(text), value) for text, value in coefficients.items()]
        tabled = {name: [(term.of, value) for term, value in terms if term.table == name] for name in sorted(TABLED)}
        self.tables = [_Table(name, its) for name, its in tabled.items() if its]
        rates = [(term.rate, value) for term, value in terms if term.rate is not None]
        self.rate = _Table("prefill_tokens", rates) if rates else None
        self.still = [(term.of, value) for term, value in terms if not term.moves and term.table is None and term.rate is None]
        self.moving = [(term.of, value) for term, value in terms if term.moves]

    def still_ns(self, features: StepFeatures) -> Column:
        """Of one step."""
        total: Column = 0.0
        for table in self.tables:
            total = total + table.ns(features)
        for term_of, value in self.still:
            total = total + value * term_of(features)
        if self.rate is not None and (started := features.prefill_started_tokens):
            total = total + started * self.rate.ns(features)
        return total

    def total_ns(self, features: StepFeatures, still_ns: Column) -> Column:
        """Always still part first, then the moving terms in their order: float addition is not associative."""
        total = still_ns
        for term_of, value in self.moving:
            total = total + value * term_of(features)
        return total


class _Table:
    """The terms that one feature decides: a long sum over few values, remembered."""

    def __init__(self, name: str, terms: list[tuple[Callable[[StepFeatures], Column], float]]) -> None:
        self._read = attrgetter(name)
        self._terms = terms
        self._known: dict[int, float] = {}

    def ns(self, features: StepFeatures) -> float:
        key = self._read(features)
        total = self._known.get(key)
        if total is None:
            total = self._known[key] = sum((value * of(features) for of, value in self._terms), 0.0)
        return total


class CostModel:
    """Step times of one model on one GPU under one optimization.

    Example:
        >>> model = CostModel.constant(step_ns=10_000_000)
        >>> model.gpu_ns(StepFeatures(decode_seqs=8, padded_tokens=8))
        10000000
    """

    def __init__(self, artifact: Artifact, logits: Logits = "trained") -> None:
        """`logits`: whose the sampler's time is; a trained model's, unless a trace with dummy weights is replayed."""
        self.artifact = artifact
        self.logits = logits
        beside = _added(artifact.sampling.get(logits, {}), {"prefill_tokens": artifact.sustained_ns} if artifact.sustained_ns else {})
        self._gpu = [_Sum(_added(artifact.step[_mode_name(mode)].gpu_ns, beside)) for mode in GraphMode]
        self._launch = [_Sum(artifact.step[_mode_name(mode)].launch_ns) for mode in GraphMode]
        self._lead = [_Sum(artifact.step[_mode_name(mode)].lead_ns) for mode in GraphMode]
        self._hand_over = [_Sum(artifact.step[_mode_name(mode)].hand_over_ns) for mode in GraphMode]
        self._hands_over = any(regime.hand_over_ns for regime in artifact.step.values())
        self._spread = [artifact.step[_mode_name(mode)].launch_spread for mode in GraphMode]
        self._still_cache: list[dict[tuple[int, int, int], float]] = [{} for _ in GraphMode]

    def __reduce__(self) -> tuple[type[CostModel], tuple[Artifact, Logits]]:
        # Its terms are closures, which do not travel to other processes; the artifact does.
        return CostModel, (self.artifact, self.logits)

    @classmethod
    def load(cls, path: Path, logits: Logits = "trained") -> CostModel:
        """Reads and checks an artifact.

        Raises:
            UserError: the file is missing, is not JSON, or breaks the schema.
        """
        try:
            return cls(Artifact.model_validate(json.loads(path.read_text())), logits)
        except FileNotFoundError:
            raise UserError(f"cost model {path}: no such file") from None
        except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
            raise UserError(f"cost model {path}: not readable as JSON ({error})") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "file"
            raise UserError(f"cost model {path}: {where}: {first['msg']}") from None

    @classmethod
    def constant(cls, step_ns: int, *, per_seq_ns: float = 0.0, num_gpu_blocks: int = 100_000, block_size: int = 16) -> CostModel:
        """A model in which every step takes `step_ns` plus `per_seq_ns` a decoding sequence: for analytic tests and benchmarks."""
        regime = Regime(gpu_ns={"one": step_ns, "decode_seqs": per_seq_ns})
        memory = Memory(
            num_gpu_blocks=num_gpu_blocks, block_size=block_size, max_model_len=32768, max_num_batched_tokens=8192, max_num_seqs=1024
        )
        return cls(
            Artifact(
                format_version=1, gpu="none", model="constant", weights="none", kv_cache_dtype="auto", tensor_parallel_size=1,
                engine="none", memory=memory, step={"none": regime, "piecewise": regime, "full": regime}, overheads=Overheads(),
                domain={}, error=[], provenance=Provenance(source="none", sha256="", fitted_by="CostModel.constant"),
            )
        )  # fmt: skip

    def gpu_ns(self, features: StepFeatures) -> Any:
        """GPU time of the step(s), whole nanoseconds: an int, or int64[k]. An empty step takes none."""
        mode = features.graph_mode
        sums = self._gpu[mode]
        return _whole_ns(sums.total_ns(features, self._still(features)))

    def launch(self, features: StepFeatures, chance: float | None = None) -> Launch:
        """What it takes to launch a step, whole nanoseconds; the time until the first kernel is a part of the launch's.

        The same for all steps of a steady decode. `features` are those of one step; `chance`, of [0, 1): how slow a launch of a step
        with a prompt is among its like; None: as slow as the mean.
        """
        launch, lead = self._launch[features.graph_mode], self._lead[features.graph_mode]
        launch_ns, lead_ns = launch.total_ns(features, launch.still_ns(features)), lead.total_ns(features, lead.still_ns(features))
        spread = self._spread[features.graph_mode]
        if chance is not None and spread and features.prefill_seqs:
            at = chance * (len(spread) - 1)
            below = int(at)
            times = spread[below] + (at - below) * (spread[below + 1] - spread[below])
            launch_ns, lead_ns = times * launch_ns, times * lead_ns
        whole_ns, hand_over = round(launch_ns), self._hand_over[features.graph_mode]
        hand_over_ns = round(hand_over.total_ns(features, hand_over.still_ns(features))) if self._hands_over else None
        return Launch(min(round(lead_ns), whole_ns), whole_ns, hand_over_ns)

    def _still(self, features: StepFeatures) -> Column:
        """The part that does not move; remembered for uniform decode, where only batch and padding enter."""
        sums = self._gpu[features.graph_mode]
        if features.prefill_seqs or features.verify_tokens:
            return sums.still_ns(features)
        cache = self._still_cache[features.graph_mode]
        key = features.decode_seqs, features.padded_tokens, features.decode_in_step_seqs
        still = cache.get(key)
        if still is None:
            still = cache[key] = sums.still_ns(features)
        return still


def _added(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    return {term: a.get(term, 0.0) + b.get(term, 0.0) for term in dict.fromkeys([*a, *b])}


def _whole_ns(ns: Column) -> Any:
    # Both round half to even, so one step and a stretch of steps agree to the nanosecond.
    return np.rint(ns).astype(np.int64) if isinstance(ns, np.ndarray) else round(ns)


def _mode_name(mode: GraphMode) -> Literal["none", "piecewise", "full"]:
    names: dict[GraphMode, Literal["none", "piecewise", "full"]] = {
        GraphMode.NONE: "none", GraphMode.PIECEWISE: "piecewise", GraphMode.FULL: "full",
    }  # fmt: skip
    return names[mode]
