"""What was seen and what the engines wrote, as a folder of the measured-trace format.

Beyond the format, requests.csv.gz has `preemptions` and `cached_tokens` (of the prompt, found in the prefix cache when first scheduled).

A trace that was cut before its last answer ended says when (`cut_s` of meta.json), and has a further column, `received_tokens`. Requests
that were aborted then have an empty `e2e_s` (and `ttft_s`, where nothing had come), and as `output_tokens` what was asked for: whoever
replays the trace sends them again. Requests that had not been sent are left out.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd

from profiler.client import Served
from profiler.errors import EngineError
from profiler.options import Recording
from profiler.replicas import Replica

SETTLE_S = 10.0
"""For an engine to end the steps in flight when its requests are aborted."""


async def tables(served: Served, replicas: Sequence[Replica]) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, float]]:
    """(requests, steps, overheads) of one trace; steps are those that the schedulers wrote between its start and its end.

    Raises:
        EngineError: the engines did not write what they did, or no request ended.
    """
    if served.unfinished == len(served.seen):
        raise EngineError(f"{served.traffic.folder}: no request ended before the trace was cut: nothing is written")
    frames = []
    for index, replica in enumerate(replicas):
        steps = await _steps(replica)
        within = (steps["schedule_s"] >= served.start_s) & (steps["schedule_s"] <= served.end_s)
        frames.append(steps[within].assign(replica=index))
    steps = pd.concat(frames).sort_values("update_s", kind="stable", ignore_index=True)
    steps[["schedule_s", "update_s"]] -= served.start_s
    if steps["accepted_seqs"].isna().all():
        steps = steps.drop(columns="accepted_seqs")
    names = [replicas[seen.replica].engine_name(seen.name) for seen in served.seen.values()]
    inside = _inside(served, replicas).reindex(names)
    requests = pd.DataFrame(served.rows())
    for column in ("preemptions", "cached_tokens"):
        # Nothing happened to a request that was aborted before its engine's scheduler got it.
        requests[column] = inside[column].fillna(0).astype(int).to_numpy()
    if len(replicas) == 1:
        requests, steps = requests.drop(columns="replica"), steps.drop(columns="replica")
    return requests, steps, _overheads(served, inside)


async def _steps(replica: Replica) -> pd.DataFrame:
    """Every step since the engine's start, as scheduled and as launched. Aborting leaves one or two in flight: they are waited for."""
    until_s = perf_counter() + SETTLE_S
    while True:
        launches = pd.DataFrame(await replica.launches())
        steps = pd.read_csv(replica.raw / "steps.csv")
        if len(launches) == len(steps):
            return pd.concat([steps, launches], axis=1)
        if perf_counter() > until_s:
            raise EngineError(f"{len(steps)} steps were scheduled, but the worker launched {len(launches)}")
        await asyncio.sleep(0.1)


def _inside(served: Served, replicas: Sequence[Replica]) -> pd.DataFrame:
    """What the engines wrote of each request, by the name under which it was sent to them."""
    inside = pd.concat(
        [pd.read_csv(replica.raw / "engine_requests.csv", dtype={"request_id": str, "preempted_s": str}) for replica in replicas]
    )
    # Names come again with every trace of one engine.
    inside = inside[(inside["added_s"] >= served.start_s) & (inside["added_s"] <= served.end_s)]
    # Until the aborts of a cut arrive the engine goes on, in steps that the trace does not have.
    preempted_s = inside["preempted_s"].fillna("").map(lambda times: np.array(times.split(), np.float64))
    inside = inside.assign(preemptions=preempted_s.map(lambda times: int((times <= served.end_s).sum())))
    # vLLM appends a random part to the name (`v1/engine/input_processor.py` `assign_request_id`).
    return inside.assign(name=inside["request_id"].str.rpartition("-")[0]).set_index("name")


def _overheads(served: Served, inside: pd.DataFrame) -> dict[str, float]:
    """Medians over requests: in to the engine's queue, in to the scheduler (which looks there between steps), and out of the last token."""
    sent = np.array([seen.sent_s for seen in served.seen.values()])
    ended = np.array([seen.output_s[-1] if seen.ended else np.nan for seen in served.seen.values()])
    return {
        "ingress_s": float(np.nanmedian(inside["queued_s"] - sent)),
        "to_scheduler_s": float(np.nanmedian(inside["added_s"] - sent)),
        "egress_s": float(np.nanmedian(ended - inside["finished_s"])),
    }


def meta(options: Recording, served: Served, facts: dict[str, Any], steps: pd.DataFrame) -> dict[str, Any]:
    """`meta.json`, but for the ways in and out. `facts`: the engine's options as read back from it."""
    opt, traffic = options.opt, served.traffic
    engine = dict(facts)
    policy = engine.pop("scheduling_policy")
    duration_s = served.end_s - served.start_s
    return {
        "format_version": 1,
        "name": traffic.name,
        "gpu": options.gpu.name,
        "num_gpus": options.num_replicas * options.tensor_parallel_size,
        "model": options.model.name,
        "weights": opt.weights,
        "kv_cache_dtype": opt.kv_cache_dtype,
        "prefix_caching": bool(opt.enable_prefix_caching),
        "speculative": _speculative(options, steps),
        "tensor_parallel_size": options.tensor_parallel_size,
        "engine": engine,
        "sampling": options.sampling.model_dump(),
        "logits": options.logits,
        "duration_s": duration_s,
        **({"cut_s": duration_s} if served.cut else {}),
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "num_gpu_blocks_override": options.num_gpu_blocks_override,
        "scheduling_policy": policy,
        "router": options.router if options.num_replicas > 1 else None,
        "workload": traffic.workload,
        "shared_prefixes": options.shared_prefixes and options.shared_prefixes.model_dump(),
        "seed": traffic.seed,
        "arrivals_s": min(traffic.duration_s, duration_s) if served.cut else traffic.duration_s,
    }


def _speculative(options: Recording, steps: pd.DataFrame) -> dict[str, Any] | None:
    """The method's options, and what was seen of its drafts over all steps that had any.

    `acceptance_rates`: share of the verified sequences whose first 1, 2, … drafts were accepted; `proposed`: share of the decoding
    sequences that had drafts; `acceptance_length_seen`: tokens that a decoding sequence emitted a step, its last one cut.
    """
    if options.opt.speculative is None:
        return None
    told = options.opt.speculative.model_dump(mode="json")
    alone = steps[(steps["decode_seqs"] > 0) & (steps["prefill_seqs"] == 0)]
    if "accepted_seqs" not in steps or alone.empty:
        return told | {"acceptance_length_seen": None}
    counts = np.array([row.split() for row in steps["accepted_seqs"].dropna()], np.int64).sum(axis=0)
    with_drafts = alone["verify_tokens"].sum() / options.opt.speculative.num_speculative_tokens
    return told | {
        "acceptance_rates": [float(f"{rate:.6g}") for rate in counts[1:] / counts[0]],
        "proposed": float(f"{min(with_drafts / alone['decode_seqs'].sum(), 1.0):.6g}"),
        "acceptance_length_seen": float(alone["emitted_tokens"].sum() / alone["decode_seqs"].sum()),
    }


def write(folder: Path, meta: dict[str, Any], requests: pd.DataFrame, steps: pd.DataFrame) -> None:
    """The three files of a trace, times to the microsecond: waking a process takes longer.

    Raises:
        EngineError: they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in (("requests", requests), ("steps", steps)):
            table.round(6).to_csv(folder / f"{name}.csv.gz", index=False, compression={"method": "gzip", "mtime": 0})
        (folder / "meta.json").write_text(json.dumps(meta, indent=1))
    except OSError as error:
        raise EngineError(f"{folder}: {error.strerror}") from error
