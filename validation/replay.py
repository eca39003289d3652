"""Replays a measured trace through the simulator, without reading what was measured."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simulator.artifacts.artifact import Artifact, Logits, Memory
from simulator.artifacts.memory import num_gpu_blocks
from simulator.artifacts.models import MODELS, find
from simulator.cost import CostModel
from simulator.engine import EngineConfig, SpeculativeConfig
from simulator.errors import UserError
from simulator.request import RequestTable
from simulator.simulate import Result, Scenario, simulate
from simulator.speculation import Acceptance
from simulator.step.itl import request_itl_s
from simulator.workload import OpenLoop, Workload, read_meta, read_trace
from simulator.workload.base import NS_PER_S
from validation.intervals import STATISTICS, statistics
from validation.speculative import read_speculative

Float64 = NDArray[np.float64]

TRACE_FILES = ("meta.json", "requests.csv.gz", "steps.csv.gz")


class EngineMeta(BaseModel):
    """`engine` of `meta.json`: vLLM's options as read back from the engine that was measured."""

    model_config = ConfigDict(extra="ignore")

    name: str
    version: str
    max_model_len: int
    max_num_batched_tokens: int
    max_num_seqs: int
    block_size: int
    num_gpu_blocks: int = Field(ge=2)
    async_scheduling: bool
    enable_chunked_prefill: bool
    long_prefill_token_threshold: int = 0
    enforce_eager: bool = False


class Meta(BaseModel):
    """What a replay needs of a measured trace's `meta.json` (measured-trace format, version 1)."""

    model_config = ConfigDict(extra="ignore")

    name: str
    gpu: str
    num_gpus: int = Field(ge=1)
    model: str
    weights: str
    kv_cache_dtype: str
    prefix_caching: bool
    speculative: dict[str, Any] | None
    tensor_parallel_size: int = Field(ge=1)
    engine: EngineMeta
    num_gpu_blocks_override: int | None = None
    gpu_memory_utilization: float | None = None
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    router: str | None = None
    seed: int | None = None
    """Of the recording's workload and router."""
    client: str = "client unknown"
    logits: Logits | None = None
    overheads: dict[str, float] | None = None
    """Medians of the ways in and out, `ingress_s` and `egress_s`, as the recorder saw them."""
    cut_s: float | None = Field(None, gt=0)
    """When the recording was stopped, its outstanding requests aborted; None: they were all served."""

    @property
    def sampled_logits(self) -> Logits:
        """Whose logits the sampler worked on; where it is not said, recorders tell in `client` that the weights were dummies."""
        return self.logits or ("dummy" if "dumm" in self.client.lower() else "trained")


@dataclass(frozen=True, eq=False)
class Recording:
    """A measured trace's workload and engine. Its latencies are read by `compare` alone."""

    folder: Path
    meta: Meta
    requests: RequestTable

    @classmethod
    def read(cls, folder: Path) -> Recording:
        """Reads the trace in `folder`.

        Raises:
            UserError: it is not a measured trace, or uses what the simulator does not model yet.
        """
        requests = read_trace(folder, "measured").requests
        try:
            meta = Meta.model_validate(read_meta(folder))
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"{folder / 'meta.json'}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        if meta.num_gpus % meta.tensor_parallel_size:
            raise UserError(
                f"{folder / 'meta.json'}: num_gpus {meta.num_gpus} is not a multiple of tensor_parallel_size {meta.tensor_parallel_size}"
            )
        recording = cls(folder, meta, requests)
        recording.drafts()
        return recording

    def drafts(self) -> tuple[SpeculativeConfig, Acceptance] | tuple[None, None]:
        """How the engine speculated, and how many drafts it accepted.

        Raises:
            UserError: that is not told.
        """
        speculative = self.meta.speculative
        return (None, None) if speculative is None else read_speculative(speculative, str(self.folder / "meta.json"))

    def is_source_of(self, artifact: Artifact) -> bool:
        """Whether the cost model was fitted to this very trace, so that a replay is in-sample."""
        return self.meta.name == artifact.provenance.source or self._sha256() == artifact.provenance.sha256

    def _sha256(self) -> str:
        # Over names and bytes, as the fit hashes the trace that it reads.
        digest = sha256()
        for name in TRACE_FILES:
            if (self.folder / name).is_file():
                digest.update(name.encode() + b"\0" + (self.folder / name).read_bytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Replay:
    """A recording as the simulator says it went."""

    recording: Recording
    cost_model: Path
    result: Result
    """Every request served to its end."""
    until_cut: Result
    """The same until the recording was stopped: what can be counted there, as preemptions can. `result` where it was not."""

    @property
    def in_sample(self) -> bool:
        return self.recording.is_source_of(self.result.scenario.cost.artifact)

    @property
    def sample(self) -> str:
        """What the cost model has seen of the trace, in words."""
        return "in-sample: the cost model was fitted to this very trace" if self.in_sample else "the cost model never saw this trace"

    def columns(self) -> dict[str, NDArray[Any]]:
        """Columns of a prediction's `requests.parquet`, one row a request in the order of arrival; seconds, NaN: no second token.

        Inter-token latencies are of tokens, as recorders count them: those that came together have no gap between them.
        """
        result = self.result
        itl_p50_s, itl_p99_s, itl_max_s = request_itl_s(result, of_tokens=self.recording.meta.speculative is not None).T
        return {
            "request_id": result.requests.request_id,
            "ttft_s": (result.first_token_ns - result.sent_ns) / NS_PER_S,
            "e2e_s": (result.finish_ns - result.sent_ns) / NS_PER_S,
            "itl_p50_s": itl_p50_s,
            "itl_p99_s": itl_p99_s,
            "itl_max_s": itl_max_s,
            "preemptions": self.until_cut.preemptions,
        }

    @property
    def duration_s(self) -> float:
        """From the trace's start to the end of the last answer, or to the cut."""
        answered_s = self.result.requests.arrival_ns / NS_PER_S, (self.result.finish_ns - self.result.sent_ns) / NS_PER_S
        return self.recording.meta.cut_s or duration(*answered_s)


def replay(recording: Recording, *, cost_model: Path | None, router: str | None, seed: int | None) -> Replay:
    """Simulates the recording with the cost model at `cost_model`, or with the shipped one of its GPU, model and options.

    `router` and `seed` are the recording's own where they are None.

    Raises:
        UserError: there is no such cost model, or a request does not fit into the engine.
    """
    meta = recording.meta
    speculative, acceptance = recording.drafts()
    path = cost_model or find(
        meta.gpu,
        meta.model,
        weights=meta.weights,
        kv_cache_dtype=meta.kv_cache_dtype,
        tensor_parallel_size=meta.tensor_parallel_size,
        speculation=None if speculative is None else speculative.name,
    )
    cost = CostModel.load(path, meta.sampled_logits)
    scenario = Scenario(
        workload=Workload(recording.requests, OpenLoop()),
        engine=_engine(recording, cost.artifact),
        cost=cost,
        num_replicas=meta.num_gpus // meta.tensor_parallel_size,
        router=router or meta.router or "round_robin",
        seed=(meta.seed or 0) if seed is None else seed,
        acceptance=acceptance,
    )
    return Replay(recording, path, *until_cut(scenario, meta.cut_s))


def until_cut(scenario: Scenario, cut_s: float | None) -> tuple[Result, Result]:
    """The scenario served to its end, and until the cut: the same where there was none."""
    whole = simulate(scenario)
    return whole, whole if cut_s is None else simulate(replace(scenario, horizon_s=cut_s))


def _engine(recording: Recording, artifact: Artifact) -> EngineConfig:
    """The measured engine's options. The number of blocks is the cost model's prediction, unless it was set by hand."""
    meta, engine = recording.meta, recording.meta.engine
    try:
        return EngineConfig(
            max_model_len=engine.max_model_len,
            max_num_batched_tokens=engine.max_num_batched_tokens,
            max_num_seqs=engine.max_num_seqs,
            block_size=artifact.memory.block_size,
            num_gpu_blocks=meta.num_gpu_blocks_override or _blocks(meta, artifact.memory),
            enable_chunked_prefill=engine.enable_chunked_prefill,
            enable_prefix_caching=meta.prefix_caching,
            long_prefill_token_threshold=engine.long_prefill_token_threshold,
            enforce_eager=engine.enforce_eager,
            scheduling_policy=meta.scheduling_policy,
            async_scheduling=engine.async_scheduling,
            speculative=recording.drafts()[0],
        )
    except ValidationError as error:
        raise UserError(f"{recording.folder / 'meta.json'}: engine: {error.errors()[0]['msg']}") from None


def _blocks(meta: Meta, memory: Memory) -> int:
    """Predicted for the recorded options; where the cost model cannot tell, as it was measured."""
    engine = meta.engine
    predicted = num_gpu_blocks(
        memory,
        gpu_memory_utilization=meta.gpu_memory_utilization or memory.gpu_memory_utilization,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_num_seqs=engine.max_num_seqs,
    )
    return memory.num_gpu_blocks if predicted is None or predicted < 2 else predicted


def write_prediction(prediction: Replay, out: Path) -> None:
    """Writes `requests.parquet` and `summary.json` (the measured-trace format's predictions) into the folder `out`.

    Raises:
        UserError: the folder cannot be written.
    """
    import pandas as pd

    columns = prediction.columns()
    try:
        out.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(columns).to_parquet(out / "requests.parquet", index=False)
        (out / "summary.json").write_text(json.dumps(_summary(prediction, columns), indent=1) + "\n")
    except OSError as error:
        raise UserError(f"out={out}: cannot be written ({error.strerror})") from None


def _summary(prediction: Replay, columns: dict[str, NDArray[Any]]) -> dict[str, Any]:
    result, recording = prediction.result, prediction.recording
    tpot_s = tpot(columns["ttft_s"], columns["e2e_s"], result.requests.output_tokens)
    return {
        "trace": recording.meta.name,
        "cost_model": shown(prediction.cost_model),
        "in_sample": prediction.in_sample,
        "requests": len(result.requests),
        "ttft_s": quantiles(columns["ttft_s"]),
        "tpot_s": quantiles(tpot_s),
        "e2e_s": quantiles(columns["e2e_s"]),
        "itl_p50_s": quantiles(columns["itl_p50_s"]),
        "itl_p99_s": quantiles(columns["itl_p99_s"]),
        "itl_max_s": quantiles(columns["itl_max_s"]),
        "duration_s": prediction.duration_s,
        "output_tokens_per_s": float(prediction.until_cut.emitted_tokens.sum()) / prediction.duration_s,
        "num_gpu_blocks": result.scenario.engine.num_gpu_blocks,
        "preemptions": int(prediction.until_cut.preemptions.sum()),
    }


def quantiles(values: Float64) -> dict[str, float] | None:
    """Mean and percentiles of the values that are there; None if none is."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    return dict(zip(STATISTICS, map(float, statistics(values)), strict=True))


def tpot(ttft_s: Float64, e2e_s: Float64, output_tokens: NDArray[np.int64]) -> Float64:
    """(E2E − TTFT) / (n − 1), NaN where n is 1."""
    return np.where(output_tokens > 1, (e2e_s - ttft_s) / np.maximum(output_tokens - 1, 1), np.nan)


def duration(arrival_s: Float64, e2e_s: Float64) -> float:
    """From the trace's start to the end of the last answer."""
    return float(np.nanmax(arrival_s + e2e_s))


def shown(path: Path) -> str:
    """A cost model's path as reports name it: from the folder of cost models on, where it lies there."""
    return f"models/{path.relative_to(MODELS).as_posix()}" if path.is_relative_to(MODELS) else str(path)
