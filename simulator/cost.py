"""What a step costs: a batch's composition in, nanoseconds out. One definition for the fit and the simulator."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from functools import reduce
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from simulator.engine import GraphMode
from simulator.errors import UserError

Column = Any
"""A number, or an array of shape (k,) with one entry a step."""


class StepFeatures(NamedTuple):
    """The composition of one engine step (numbers), or of k steps (columns of shape (k,); constants may stay numbers)."""

    prefill_seqs: Column = 0
    """Sequences with a chunk of prompt (or of recomputed tokens) in the step."""
    prefill_tokens: Column = 0
    """Tokens of those chunks."""
    prefill_context_tokens: Column = 0
    """Sum of the chunks' end positions: keys and values read."""
    prefill_attention_tokens: Column = 0
    """Pairs of a chunk's token and a token that it attends to, itself and those before it: attention work."""
    decode_seqs: Column = 0
    """Sequences that decode."""
    decode_context_tokens: Column = 0
    """Sum of their contexts, the new token included."""
    decode_context_max_tokens: Column = 0
    """The longest of those contexts."""
    verify_tokens: Column = 0
    """Draft tokens verified beside the one token a decoding sequence always has."""
    padded_tokens: Column = 0
    """Tokens of the batch after CUDA-graph padding."""
    graph_mode: Column = GraphMode.FULL
    """`GraphMode` of the launch."""

    @property
    def tokens(self) -> Column:
        """Tokens of the batch before padding."""
        return self.prefill_tokens + self.decode_seqs + self.verify_tokens


MOVING = frozenset({"decode_context_tokens", "decode_context_max_tokens"})
"""Features that change from one step of a steady decode to the next; all others stay."""

_FACTOR = re.compile(r"(?P<name>[a-z_]+)(\[(?P<low>\d+)?:((?P<peak>\d+):)?(?P<high>\d+)?\])?")
_NAMES = (*StepFeatures._fields, "tokens", "one")


class Factor(NamedTuple):
    """One feature, or the part of it between two knots: `padded_tokens[64:128]` is `clip(x, 64, 128) − 64`.

    With three knots, a share: `padded_tokens[64:128:136]` is 1 at 128 and falls to 0 at 64 and 136. Neighbouring shares add up to 1,
    so their coefficients are a table of times with straight lines between its entries. Without an outer knot it stays 1 on that side.
    """

    name: str
    low: int | None
    high: int | None
    peak: int | None = None

    @classmethod
    def parse(cls, text: str) -> Factor:
        match = _FACTOR.fullmatch(text)
        if match is None or match["name"] not in _NAMES:
            raise ValueError(f"term {text!r}: expected NAME, NAME[low:high] or NAME[low:peak:high] with NAME one of {', '.join(_NAMES)}")
        low, high, peak = (None if knot is None else int(knot) for knot in (match["low"], match["high"], match["peak"]))
        rising = [0 if low is None and peak is None else low, peak, high]
        knots = [knot for knot in rising if knot is not None]
        if any(upper <= lower for lower, upper in pairwise(knots)):
            raise ValueError(f"term {text!r}: its upper knot must lie above its lower one")
        return cls(match["name"], low, high, peak)

    def reader(self) -> Callable[[StepFeatures], Column]:
        """What reads the factor's value, a number or shape (k,), from features."""
        if self.name == "one":
            return lambda _: 1
        read = attrgetter(self.name)
        if self.peak is not None:
            return self._share(read, self.peak)
        if self.low is self.high is None:
            return read
        low = 0 if self.low is None else self.low
        high = sys.maxsize if self.high is None else self.high

        def between_knots(features: StepFeatures) -> Column:
            x = read(features)
            # The same values from numbers and from arrays: a stretch of k steps must cost what k single steps do.
            if isinstance(x, np.ndarray):
                return np.minimum(np.maximum(x, low), high) - low
            return min(x, high) - low if x > low else 0

        return between_knots

    def _share(self, read: Callable[[StepFeatures], Column], peak: int) -> Callable[[StepFeatures], Column]:
        rise = None if self.low is None else peak - self.low
        fall = None if self.high is None else self.high - peak

        def share(features: StepFeatures) -> Column:
            off = read(features) - peak
            up = 1.0 if rise is None else 1.0 + off / rise
            down = 1.0 if fall is None else 1.0 - off / fall
            if isinstance(off, np.ndarray):
                return np.maximum(np.minimum(np.minimum(up, down), 1.0), 0.0)
            return max(min(up, down, 1.0), 0.0)

        return share


class Term:
    """A product of factors, written `decode_seqs*decode_context_max_tokens[4096:]`: a column of the fit's design matrix."""

    def __init__(self, text: str) -> None:
        self.text = text
        factors = [Factor.parse(part) for part in text.split("*")]
        self.moves = any(factor.name in MOVING for factor in factors)
        """Whether the value changes within a steady decode."""
        self.tabular = all(factor.name in ("one", "padded_tokens") for factor in factors)
        """Whether the value follows from the padded batch alone."""
        self.of = reduce(_product, (factor.reader() for factor in factors))
        """Value of the term, from `StepFeatures`: a number, or shape (k,)."""


def _product(a: Callable[[StepFeatures], Column], b: Callable[[StepFeatures], Column]) -> Callable[[StepFeatures], Column]:
    return lambda features: a(features) * b(features)


def design_matrix(terms: Iterable[str], features: StepFeatures) -> NDArray[np.float64]:
    """float64[k, number of terms]: what the fit multiplies with its coefficients."""
    k = np.broadcast(*features).size
    return np.column_stack([np.broadcast_to(Term(text).of(features), k) for text in terms]).astype(np.float64)


class Strict(BaseModel):
    """Base of the artifact's parts: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Regime(Strict):
    """Coefficients of one graph mode: nanoseconds by term, on the GPU and on the thread that launches."""

    gpu_ns: dict[str, float]
    launch_ns: dict[str, float] = {}
    """What the thread does for a step: results before it handled, batch chosen, inputs prepared, kernels launched."""
    lead_ns: dict[str, float] = {}
    """Of that, the time before the first kernel, for which a GPU without other work waits."""

    @field_validator("gpu_ns", "launch_ns", "lead_ns")
    @classmethod
    def _physical(cls, coefficients: dict[str, float]) -> dict[str, float]:
        for text, value in coefficients.items():
            Term(text)
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"coefficient of {text!r} is {value}; more work never takes less time: it must be 0 or more")
        return coefficients


class MemoryParts(Strict):
    """Where the memory of one GPU went at the start, bytes: what other settings' pools follow from (vLLM `v1/worker/gpu_worker.py`)."""

    total_bytes: int = Field(gt=0)
    weights_bytes: int = Field(ge=0)
    activation_peak_bytes: int = Field(ge=0)
    non_torch_bytes: int = Field(ge=0)
    graphs_estimate_bytes: int = Field(ge=0)
    bytes_per_block: float = Field(gt=0)
    """Of one GPU, all layers."""
    activation_peaks: list[tuple[int, int, int]] = []
    """(token budget, seats, bytes): activation peaks measured at other settings."""


class Memory(Strict):
    """The KV pool, as vLLM reported it at start."""

    num_gpu_blocks: int = Field(ge=2)
    block_size: int = Field(ge=1)
    gpu_memory_utilization: float = Field(0.92, gt=0, le=1)
    max_model_len: int = Field(ge=1)
    max_num_batched_tokens: int = Field(ge=1)
    max_num_seqs: int = Field(ge=1)
    parts: MemoryParts | None = None


class Overheads(Strict):
    """Times outside the GPU, nanoseconds."""

    ingress_ns: int = Field(0, ge=0)
    """Client's send to the engine's queue."""
    egress_ns: int = Field(0, ge=0)
    """End of a step to the token at the client."""
    schedule_ns: int = Field(0, ge=0)
    """CPU time between a step's result and the launch that follows it: outputs handled, next batch chosen."""


class Provenance(Strict):
    """Where the numbers come from."""

    source: str
    """Name of the profile or trace."""
    sha256: str
    """Hash of the raw measurements."""
    fitted_by: str
    note: str = ""


class Measurement(Strict):
    """How a profile was measured, and the state that the GPU was in."""

    device: str
    driver: str
    power_limit_w: float
    gpu_minutes: float
    """Start of the engine included."""
    points: int
    points_in_grid: int
    weight_values: str
    """`dummy`, or `realistic`: of the scale of real weights."""
    sm_clock_mhz: tuple[float, float, float]
    """Least, median and greatest reading, one a point; so are the next two."""
    power_w: tuple[float, float, float]
    temperature_c: tuple[float, float, float]


class ErrorRow(Strict):
    """Signed relative error (predicted / measured − 1) over one set of held-out measurements."""

    judged_on: str
    n: int
    median_abs: float
    p90_abs: float
    signed_mean: float
    """Of a trace, weighted with the measured times: the error of their sum. Of a profile, each row of the grid the same."""


class Artifact(Strict):
    """A fitted cost model as stored in `models/<gpu>/<model>/<weights>-kv_<dtype>-tp<n>.json`; `models/schema.json` is its schema."""

    format_version: Literal[1]
    gpu: str
    model: str
    weights: str
    kv_cache_dtype: str
    tensor_parallel_size: int = Field(ge=1)
    engine: str
    """Name and version, such as `vllm 0.26.0`."""
    memory: Memory
    step: dict[Literal["none", "piecewise", "full"], Regime]
    overheads: Overheads
    domain: dict[str, tuple[float, float]]
    """Least and greatest measured value of each feature."""
    error: list[ErrorRow]
    residuals: dict[Literal["decode", "prefill", "mixed"], dict[str, float]] = {}
    """Quantiles of measured / predicted − 1 of single steps, by quantile; not used by the simulator yet."""
    measurement: Measurement | None = None
    speculation: str | None = None
    """`<method>-k<K>`, such as `eagle3-k3`: every step verifies K drafts a sequence and makes new ones."""
    provenance: Provenance

    @field_validator("step")
    @classmethod
    def _complete(cls, step: dict[str, Regime]) -> dict[str, Regime]:
        missing = {"none", "piecewise", "full"} - set(step)
        if missing:
            raise ValueError(f"graph mode {', '.join(sorted(missing))} is missing")
        return step


class _Sum:
    """Σ coefficient × term, split into the part that stays and the part that moves within a steady decode."""

    def __init__(self, coefficients: dict[str, float]) -> None:
        terms = [(Term(text), value) for text, value in coefficients.items()]
        self.table = [(term.of, value) for term, value in terms if term.tabular]
        self.still = [(term.of, value) for term, value in terms if not term.moves and not term.tabular]
        self.moving = [(term.of, value) for term, value in terms if term.moves]
        self._by_padded_tokens: dict[int, float] = {}

    def still_ns(self, features: StepFeatures) -> Column:
        """Of one step. What depends on the padded batch alone is a long sum over few values: remembered."""
        total = self._by_padded_tokens.get(features.padded_tokens)
        if total is None:
            total = self._by_padded_tokens[features.padded_tokens] = sum((value * of(features) for of, value in self.table), 0.0)
        for term_of, value in self.still:
            total = total + value * term_of(features)
        return total

    def total_ns(self, features: StepFeatures, still_ns: Column) -> Column:
        """Always still part first, then the moving terms in their order: float addition is not associative."""
        total = still_ns
        for term_of, value in self.moving:
            total = total + value * term_of(features)
        return total


class CostModel:
    """Step times of one model on one GPU under one optimization.

    Example:
        >>> model = CostModel.constant(step_ns=10_000_000)
        >>> model.gpu_ns(StepFeatures(decode_seqs=8, padded_tokens=8))
        10000000
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self._gpu = [_Sum(artifact.step[_mode_name(mode)].gpu_ns) for mode in GraphMode]
        self._launch = [_Sum(artifact.step[_mode_name(mode)].launch_ns) for mode in GraphMode]
        self._lead = [_Sum(artifact.step[_mode_name(mode)].lead_ns) for mode in GraphMode]
        self._still_cache: list[dict[tuple[int, int], float]] = [{} for _ in GraphMode]

    def __reduce__(self) -> tuple[type[CostModel], tuple[Artifact]]:
        # Its terms are closures, which do not travel to other processes; the artifact does.
        return CostModel, (self.artifact,)

    @classmethod
    def load(cls, path: Path) -> CostModel:
        """Reads and checks an artifact.

        Raises:
            UserError: the file is missing, is not JSON, or breaks the schema.
        """
        try:
            return cls(Artifact.model_validate(json.loads(path.read_text())))
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

    def launch_ns(self, features: StepFeatures) -> tuple[int, int]:
        """(time until the first kernel, time that the launching thread needs), whole nanoseconds; the first is a part of the second.

        The same for all steps of a steady decode. `features` are those of one step.
        """
        launch, lead = self._launch[features.graph_mode], self._lead[features.graph_mode]
        launch_ns = round(launch.total_ns(features, launch.still_ns(features)))
        return min(round(lead.total_ns(features, lead.still_ns(features))), launch_ns), launch_ns

    def _still(self, features: StepFeatures) -> Column:
        """The part that does not move; remembered for uniform decode, where only batch and padding enter."""
        sums = self._gpu[features.graph_mode]
        if features.prefill_seqs or features.verify_tokens:
            return sums.still_ns(features)
        cache, key = self._still_cache[features.graph_mode], (features.decode_seqs, features.padded_tokens)
        still = cache.get(key)
        if still is None:
            still = cache[key] = sums.still_ns(features)
        return still


def _whole_ns(ns: Column) -> Any:
    # Both round half to even, so one step and a stretch of steps agree to the nanosecond.
    return np.rint(ns).astype(np.int64) if isinstance(ns, np.ndarray) else round(ns)


def _mode_name(mode: GraphMode) -> Literal["none", "piecewise", "full"]:
    names: dict[GraphMode, Literal["none", "piecewise", "full"]] = {
        GraphMode.NONE: "none", GraphMode.PIECEWISE: "piecewise", GraphMode.FULL: "full",
    }  # fmt: skip
    return names[mode]
