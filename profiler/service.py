"""What an engine takes in service beyond its profile, read off calibrations.

The profiler steps an engine alone in its process. In service other threads carry requests in and answers out beside the one that
launches, and the client has its own ways. A calibration is traffic recorded to show that (`conf/workload/calibration.yaml`); it lies in
`models/<gpu>/service/`, and is never among the traces that validation judges by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression

from profiler.fit import MODES, Mode
from profiler.launch_time import Launching, launch_regimes, launches_in_engine
from profiler.profiled import Profiled, from_raw
from profiler.raw import Raw
from profiler.steps import Replay, replay
from profiler.trace import Trace, read_trace
from simulator.artifacts.artifact import Overheads
from simulator.artifacts.models import artifact_name
from simulator.errors import UserError
from simulator.features import design_matrix

Float64 = NDArray[np.float64]

SERVICE = "service"
"""Folder of a GPU's calibrations below `models/<gpu>/`."""

QUANTILES = 21

RARE = 0.01
"""Share of launches at either end that are taken for accidents (a page fault, another process), not for launches."""

FEWEST_STEPS = 30
"""Of fewer steps in a graph mode no ratio is taken."""


MOSTLY = 0.85
"""Share of the time between two results that is a worker's launch, from which on nothing else can have taken long."""


@dataclass(frozen=True)
class Launches:
    """Launches in service."""

    ratio: Mapping[Mode, float] = field(default_factory=dict)
    """How many times as long they take as in the profile; modes that were too rare are left out."""
    spread: Mapping[Mode, list[float]] = field(default_factory=dict)
    """How far single ones lie from that: `QUANTILES` of them at even distances, of mean 1."""


@dataclass(frozen=True)
class Service:
    """What a cost model has beside its profile."""

    engine: Launches = field(default_factory=Launches)
    """Where the engine's thread launches: its time from result to result."""
    workers: Launches = field(default_factory=Launches)
    """Where there are several GPUs, and each has a process that launches."""
    overheads: Overheads = field(default_factory=Overheads)

    def launches_of(self, profile: Profiled) -> Launches:
        """Those of an engine like the profile's; without asynchronous scheduling a launch ends with a wait, and none is known."""
        if not profile.meta["engine"]["async_scheduling"]:
            return Launches()
        return self.engine if launches_in_engine(profile) else self.workers


@dataclass(frozen=True, eq=False)
class _Calibration:
    trace: Trace
    replayed: Replay
    launches: Mapping[Mode, Launching]
    """Of its engine's own profile."""
    host_slower: float
    """How many times as long its host takes as the profile's; 1 where either was not timed."""


def read_service(folder: Path, models: Path) -> Service:
    """What all the calibrations in `folder` say together.

    Args:
        folder: one folder a calibration, in the measured-trace format with this project's columns.
        models: where the profiles of the engines that were calibrated lie, beside their cost models.

    Raises:
        UserError: there is no calibration, one does not tell launches, or its engine's profile is missing.
    """
    paths = sorted(path.parent for path in folder.glob("*/meta.json"))
    if not paths:
        raise UserError(f"service {folder}: holds no calibration; record one with workload=calibration")
    calibrations = [_read(path, models) for path in paths]
    engine, workers = (_in_service(calibrations, hand_over) for hand_over in (False, True))
    return Service(engine, workers, _overheads(calibrations))


def _in_service(calibrations: list[_Calibration], hand_over: bool) -> Launches:
    """Launches of the engines that hand their batches over, or of those that do not."""
    ratios: dict[Mode, float] = {}
    spreads: dict[Mode, list[float]] = {}
    for mode in MODES:
        served_ns, profiled_ns = _launches(calibrations, mode, hand_over)
        if len(served_ns) < FEWEST_STEPS:
            continue
        times = served_ns / profiled_ns
        usual = (times >= np.quantile(times, RARE)) & (times <= np.quantile(times, 1 - RARE))
        ratios[mode] = float(served_ns[usual].sum() / profiled_ns[usual].sum())
        if mode != "full":  # prompts are never launched as full graphs
            spreads[mode] = _spread(times[usual])
    return Launches(ratios, spreads)


def _read(path: Path, models: Path) -> _Calibration:
    trace = read_trace(path)
    meta = trace.meta
    if missing := {"launch_s", "schedule_cpu_s"} - set(trace.steps):
        raise UserError(f"service {path}: steps.csv.gz has no {', '.join(sorted(missing))}; record it with `python -m profiler.record`")
    if meta.overheads is None or "ingress_s" not in meta.overheads:
        raise UserError(f"service {path}: meta.json has no overheads.ingress_s; record it with `python -m profiler.record`")
    profile = models / meta.gpu / meta.model / artifact_name(meta.weights, meta.kv_cache_dtype, meta.tensor_parallel_size)
    raw = Raw.read(profile.with_suffix(".json"))
    return _Calibration(trace, replay(trace), launch_regimes(from_raw(raw)), _slower(meta.host or {}, raw.meta.get("machine") or {}))


def _slower(host: Mapping[str, float], other: Mapping[str, Any]) -> float:
    """How many times as long one host takes as another, by the geometric mean of what both were timed at."""
    ratios = [microseconds / other[name] for name, microseconds in host.items() if name in other]
    return float(np.exp(np.mean(np.log(ratios)))) if ratios else 1.0


def _launches(calibrations: list[_Calibration], mode: Mode, hand_over: bool) -> tuple[Float64, Float64]:
    """(launches in service, what the engine's own profile says of them), nanoseconds, of all steps of a mode.

    What a slower or faster host does to both is taken out: it is not what service adds.
    """
    served, profiled = [np.zeros(0)], [np.zeros(0)]
    for calibration in calibrations:
        launching = calibration.launches.get(mode)
        if launching is None or bool(launching.hand_over) != hand_over:
            continue
        features, launch_ns = calibration.replayed.features, launching.launch
        on_its_host_ns = calibration.host_slower * (design_matrix(tuple(launch_ns), features) @ np.array(list(launch_ns.values())))
        rows = np.asarray(features.graph_mode) == int(MODES[mode])
        if hand_over:
            times_ns = _workers_ns(calibration.trace, on_its_host_ns, rows)
        else:
            times_ns = _turns_ns(calibration.trace, calibration.replayed)
        rows &= np.isfinite(times_ns)
        served.append(times_ns[rows])
        profiled.append(on_its_host_ns[rows])
    return np.concatenate(served), np.concatenate(profiled)


def _spread(times: Float64) -> list[float]:
    """Quantiles of `times`, scaled so that the line through them has mean 1."""
    quantiles = np.quantile(times, np.linspace(0, 1, QUANTILES))
    mean = np.mean((quantiles[1:] + quantiles[:-1]) / 2)
    return [round(float(q), 4) for q in quantiles / mean]


def _turns_ns(trace: Trace, replayed: Replay) -> Float64:
    """float64[k]: from the result that made room for a step to the end of its launch; NaN where the engine was idle between."""
    depth = trace.meta.engine_config().depth
    steps = trace.steps
    launched_s = (steps["schedule_s"] + steps["schedule_cpu_s"] + steps["launch_s"]).to_numpy(np.float64)
    turns_s = np.full(len(launched_s), np.nan)
    turns_s[depth:] = launched_s[depth:] - steps["update_s"].to_numpy(np.float64)[:-depth]
    fresh = replayed.after_idle.copy()
    for later in range(1, depth):
        fresh[later:] |= replayed.after_idle[:-later]
    turns_s[fresh] = np.nan
    return turns_s * 1e9


def _workers_ns(trace: Trace, profiled_ns: Float64, of_mode: NDArray[np.bool_]) -> Float64:
    """float64[k]: a worker's launch of each step of a mode, and the way there and back, from process to process; NaN: not to be told.

    Where the step before kept the GPU busy for longer than the launch should take, more kernels may be queued than a stream holds, and
    the launch waits for the GPU. The way shows where little else lies between two results than a launch.
    """
    steps, depth = trace.steps, trace.meta.engine_config().depth
    launch_s, thread_s = steps["launch_s"], steps["schedule_cpu_s"] + steps["update_cpu_s"]
    since_s = steps["update_s"].diff(depth)
    way_s = (since_s - thread_s - launch_s)[of_mode & (launch_s > MOSTLY * since_s)].median()
    before_ns = steps["update_s"].diff().shift().to_numpy(np.float64) * 1e9
    served_ns = (launch_s + (way_s if np.isfinite(way_s) else 0.0)).to_numpy(np.float64) * 1e9
    return np.where(of_mode & (before_ns < profiled_ns), served_ns, np.nan)


def _overheads(calibrations: list[_Calibration]) -> Overheads:
    """The way in as the recorder saw it (a median); the way out as a line over the sequences of the step that gave a first token."""
    way_in_s, way_out_s, num_seqs = [], [], []
    for calibration in calibrations:
        requests, steps, step = calibration.trace.requests, calibration.trace.steps, calibration.replayed.first_token_step
        at_client_s = (requests["arrival_s"] + requests["ttft_s"]).to_numpy(np.float64)
        way_in_s.append((calibration.trace.meta.overheads or {})["ingress_s"])
        way_out_s.append(at_client_s - steps["update_s"].to_numpy(np.float64)[step])
        num_seqs.append((steps["prefill_seqs"] + steps["decode_seqs"]).to_numpy(np.float64)[step])
    seqs = np.concatenate(num_seqs)
    line = LinearRegression(positive=True, fit_intercept=False)
    line.fit(np.column_stack([np.ones(len(seqs)), seqs]), np.concatenate(way_out_s))
    fixed_s, each_s = line.coef_
    return Overheads(
        ingress_ns=_microseconds_ns(float(np.mean(way_in_s))),
        egress_ns=_microseconds_ns(float(fixed_s)),
        egress_per_seq_ns=round(float(each_s) * 1e9),
    )


def _microseconds_ns(seconds: float) -> int:
    return round(seconds * 1e6) * 1000
