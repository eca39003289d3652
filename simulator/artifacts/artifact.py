"""A fitted cost model as it is stored: coefficients, domain, errors, memory, provenance. Data only, checked on reading."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from simulator.artifacts.attention import Attention
from simulator.features import Term

Count = TypeVar("Count", int, NDArray[np.int64])

Logits = Literal["trained", "dummy"]
"""Whose logits a sampler works on, which decides how long it takes: a trained model's, or those of dummy weights."""


class Strict(BaseModel):
    """Base of the artifact's parts: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _check(coefficients: dict[str, float]) -> dict[str, float]:
    for text, value in coefficients.items():
        Term(text)
        if not 0.0 <= value < float("inf"):
            raise ValueError(f"coefficient of {text!r} is {value}; more work never takes less time: it must be 0 or more")
    return coefficients


class Regime(Strict):
    """Coefficients of one graph mode: nanoseconds by term, on the GPU, and on the thread or the process that launches."""

    gpu_ns: dict[str, float]
    launch_ns: dict[str, float] = {}
    """What the launching thread does for a step: results before it handled, batch chosen, inputs prepared, kernels launched."""
    lead_ns: dict[str, float] = {}
    """Of that, the time before the first kernel, for which a GPU without other work waits."""
    hand_over_ns: dict[str, float] = {}
    """Where workers launch, processes of their own (several GPUs): what the engine's thread does before they have the step, which is no
    part of the launch then. Empty: the thread launches itself."""
    launch_spread: list[float] = []
    """How many times as long the launch of a step with a prompt takes as the two say: quantiles at even distances, the least and the
    greatest included, of mean 1. Empty: always as they say."""

    @field_validator("launch_spread")
    @classmethod
    def _ordered(cls, quantiles: list[float]) -> list[float]:
        if len(quantiles) == 1 or any(not 0.0 < a <= b < float("inf") for a, b in pairwise(quantiles)):
            raise ValueError("launch_spread must be two or more positive quantiles in order")
        return quantiles

    @field_validator("gpu_ns", "launch_ns", "lead_ns", "hand_over_ns")
    @classmethod
    def _physical(cls, coefficients: dict[str, float]) -> dict[str, float]:
        return _check(coefficients)


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
    """End of a step to its tokens at their clients, …"""
    egress_per_seq_ns: int = Field(0, ge=0)
    """… and so much more for every sequence of the step: one thread hands out all answers."""
    schedule_ns: int = Field(0, ge=0)
    """CPU time between a step's result and the launch that follows it: outputs handled, next batch chosen."""

    def to_client_ns(self, num_seqs: Count) -> Count:
        """From the end of a step of `num_seqs` sequences to its tokens at their clients, when no earlier ones are under way."""
        return num_seqs * self.egress_per_seq_ns + self.egress_ns


class Provenance(Strict):
    """Where the numbers come from."""

    source: str
    """Name of the profile or trace."""
    sha256: str
    """Hash of the raw measurements."""
    fitted_by: str
    note: str = ""
    service: str = ""
    """Below `models/`, the calibrations that tell how much longer launches take in service, and the ways from and to the client."""
    after: str = ""
    """The artifact whose profile timed the sampler and the product with the vocabulary, if it is another one."""
    sustained: str = ""
    """What tells `sustained_ns`: its own profile, or others of the same GPU."""
    sharing: str = ""
    """Hash of the measurements that tell what sequences save that share blocks."""


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
    attention: Attention | None = None
    """None: how evenly it fills the GPU is not in the cost of a step."""
    step: dict[Literal["none", "piecewise", "full"], Regime]
    sampling: dict[Logits, dict[str, float]] = {}
    """Coefficients of the sampler's GPU time, nanoseconds by term, which every step has beside `step`; where empty, it is part of that."""
    sustained_ns: float = Field(0.0, ge=0, lt=float("inf"))
    """What each token of a prompt takes longer on the GPU in service, where it never rests, than in a profile. 0: not measured."""
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

    @field_validator("sampling")
    @classmethod
    def _physical(cls, sampling: dict[Logits, dict[str, float]]) -> dict[Logits, dict[str, float]]:
        return {logits: _check(coefficients) for logits, coefficients in sampling.items()}

    @field_validator("step")
    @classmethod
    def _complete(cls, step: dict[str, Regime]) -> dict[str, Regime]:
        missing = {"none", "piecewise", "full"} - set(step)
        if missing:
            raise ValueError(f"graph mode {', '.join(sorted(missing))} is missing")
        return step
