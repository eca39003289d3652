"""One profile from start to end: the engine started, the grid measured within its budget, the results written."""

from __future__ import annotations

import platform
import sys
from time import perf_counter, strftime
from typing import Any

from tqdm import tqdm

from profiler.errors import EngineError
from profiler.grid import grid
from profiler.memory import MemoryAccount
from profiler.nvml import Nvml
from profiler.options import Profile
from profiler.parts import Parts
from profiler.points import Limits, Point
from profiler.stop import Interruption, deadline_s
from simulator.errors import UserError


def run(profile: Profile, device: str, begin_s: float, interruption: Interruption) -> str:
    """Measures what is not measured yet, until `budget_s` after `begin_s` (`perf_counter`); returns what to say about it.

    Raises:
        UserError: the output folder is not this profile's, or the budget went into the engine's start.
        EngineError: vLLM failed.
    """
    from profiler.engine import Engine
    from profiler.measure import measure, summary

    parts = Parts(profile.folder, _identity(profile, device))
    sensors = Nvml()
    engine = Engine(profile)
    points = grid(_limits(engine), profile.kinds)
    missing = [point for point in points if point.name not in parts.done]
    until_s = deadline_s(begin_s, profile.budget_s)
    if missing and perf_counter() > until_s:
        raise UserError(
            f"budget_s={profile.budget_s:g} went into the engine's start ({engine.start_s:.0f} s): give at least {engine.start_s + 90:.0f}"
        )
    often_s = 0.1 if sys.stderr.isatty() else 10.0
    bar = tqdm(missing, total=len(points), initial=len(points) - len(missing), unit="point", file=sys.stderr, mininterval=often_s)
    for point in bar:
        if perf_counter() > until_s:
            break
        measured = measure(engine, point, sensors)
        bar.set_description(f"{point.name}: {summary(measured['rows'])}", refresh=False)
        parts.add(measured)
        interruption.check()
    bar.close()
    account = _memory(engine)
    _write(profile, parts, engine.read_back(), account, engine.start_s, sensors.identity() | engine.host_speed(), points)
    engine.close()
    return _say(profile, parts, points, account)


def _limits(engine: Any) -> Limits:
    read = engine.read_back()
    return Limits(
        max_model_len=engine.max_model_len,
        max_num_seqs=engine.max_num_seqs,
        max_num_scheduled_tokens=engine.max_num_scheduled_tokens,
        usable_blocks=engine.num_gpu_blocks - 1,
        block_size=engine.block_size,
        tokens_per_decode=engine.tokens_per_decode,
        max_sampled_tokens=engine.max_sampled_tokens,
        graph_sizes=tuple(read["cudagraph_capture_sizes"]) if read["cudagraph_mode"] != "NONE" else (),
    )


def _identity(profile: Profile, device: str) -> dict[str, Any]:
    """What must agree between runs that share a file of points."""
    import vllm

    # A profile that leaves routing alone continues points from before there was a choice.
    unset = {"moe_routing"} if profile.moe_routing is None else set()
    asked = profile.model_dump(mode="json", exclude={"budget_s", "out", "verbose", "workload", "kinds"} | unset)
    return {"format_version": 1, **asked, "device": device, "vllm": vllm.__version__}


def _memory(engine: Any) -> MemoryAccount:
    """The account of this start, with the activation peak of other settings."""
    tokens, seqs = engine.max_num_batched_tokens, engine.max_num_seqs
    settings = [(t, s) for s in sorted({min(256, seqs), seqs}) for t in sorted({min(2048, tokens), min(4096, tokens), tokens})]
    try:
        peaks = engine.activation_peaks(settings)
    except EngineError as error:
        sys.stderr.write(f"activation peaks at other settings are missing: {error}\n")
        peaks = []
    sizes = {"num_gpu_blocks": engine.num_gpu_blocks, "max_num_batched_tokens": tokens, "max_num_seqs": seqs}
    return MemoryAccount.model_validate(engine.memory() | sizes | {"activation_peaks": peaks})


def _write(
    profile: Profile,
    parts: Parts,
    engine: dict[str, Any],
    account: MemoryAccount,
    start_s: float,
    machine: dict[str, Any],
    points: list[Point],
) -> None:
    import torch

    document = {
        "format_version": 1,
        "gpu": profile.gpu.name,
        "num_gpus": profile.tensor_parallel_size,
        "model": profile.model.shape,
        "config": profile.model.config,
        "weights": profile.opt.weights,
        "weight_values": profile.weight_values,
        "moe_routing": profile.moe_routing,
        "kv_cache_dtype": profile.opt.kv_cache_dtype,
        "prefix_caching": bool(profile.opt.enable_prefix_caching),
        "speculative": profile.opt.speculative and profile.opt.speculative.model_dump(mode="json"),
        "tensor_parallel_size": profile.tensor_parallel_size,
        "sampling": profile.sampling.model_dump(),
        "engine": engine,
        "engine_start_s": start_s,
        "memory": account.model_dump() | {"bytes_per_block": account.bytes_per_block},
        "points_measured": len(parts.points),
        "points_in_grid": len(points),
        "points": [{key: value for key, value in point.items() if key != "steps"} for point in parts.points],
        "machine": machine | {"python": platform.python_version(), "torch": torch.__version__, "processor": platform.processor()},
        "written": strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    parts.finish(document)


def _say(profile: Profile, parts: Parts, points: list[Point], account: MemoryAccount) -> str:
    # A file may hold points that an earlier grid had.
    measured, cut = len(parts.points), not parts.done.issuperset(point.name for point in points)
    steps = sum(len(next(iter(point["steps"].values()), [])) for point in parts.points)
    return (
        f"{profile.model.name} {profile.label} on {profile.gpu.name}: {measured} of {len(points)} points, {steps} steps"
        f"{' (cut by budget_s; the same command continues)' if cut else ''}; {account.num_gpu_blocks} KV blocks of"
        f" {account.bytes_per_block / 1024:.0f} KiB; {profile.folder / 'steps.csv.gz'}"
    )
