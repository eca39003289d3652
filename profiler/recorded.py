"""What was seen and what the engines wrote, as a folder of the measured-trace format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from profiler.client import Served
from profiler.errors import EngineError
from profiler.options import Recording
from profiler.replicas import Replica


async def tables(served: Served, replicas: Sequence[Replica]) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, float]]:
    """(requests, steps, overheads) of one trace; steps are those that the schedulers wrote between its start and its end."""
    inside = _inside(served, replicas)
    requests = pd.DataFrame(served.rows())
    names = [replicas[seen.replica].engine_name(seen.name) for seen in served.seen]
    requests["preemptions"] = inside["preemptions"].reindex(names).to_numpy()
    frames = []
    for index, replica in enumerate(replicas):
        steps, launches = pd.read_csv(replica.raw / "steps.csv"), pd.DataFrame(await replica.launches())
        if len(launches) != len(steps):
            raise EngineError(f"{len(steps)} steps were scheduled, but the worker launched {len(launches)}")
        steps = pd.concat([steps, launches], axis=1)
        within = (steps["schedule_s"] >= served.start_s) & (steps["schedule_s"] <= served.end_s)
        frames.append(steps[within].assign(replica=index))
    steps = pd.concat(frames).sort_values("update_s", kind="stable", ignore_index=True)
    steps[["schedule_s", "update_s"]] -= served.start_s
    if steps["accepted_seqs"].isna().all():
        steps = steps.drop(columns="accepted_seqs")
    if len(replicas) == 1:
        requests, steps = requests.drop(columns="replica"), steps.drop(columns="replica")
    return requests, steps, _overheads(served, inside.reindex(names))


def _inside(served: Served, replicas: Sequence[Replica]) -> pd.DataFrame:
    """What the engines wrote of each request, by the name under which it was sent to them."""
    inside = pd.concat([pd.read_csv(replica.raw / "engine_requests.csv", dtype={"request_id": str}) for replica in replicas])
    # Names come again with every trace of one engine.
    inside = inside[(inside["added_s"] >= served.start_s) & (inside["finished_s"] <= served.end_s)]
    # vLLM appends a random part to the name (`v1/engine/input_processor.py` `assign_request_id`).
    return inside.assign(name=inside["request_id"].str.rpartition("-")[0]).set_index("name")


def _overheads(served: Served, inside: pd.DataFrame) -> dict[str, float]:
    """Medians over requests: in to the engine's queue, in to the scheduler (which looks there between steps), and out of the last token."""
    sent = np.array([seen.sent_s for seen in served.seen])
    ended = np.array([seen.output_s[-1] for seen in served.seen])
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
        "duration_s": served.end_s - served.start_s,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "num_gpu_blocks_override": options.num_gpu_blocks_override,
        "scheduling_policy": policy,
        "router": options.router if options.num_replicas > 1 else None,
        "workload": traffic.workload,
        "shared_prefixes": options.shared_prefixes and options.shared_prefixes.model_dump(),
        "seed": traffic.seed,
        "arrivals_s": traffic.duration_s,
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
    """The three files of a trace.

    Raises:
        EngineError: they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in (("requests", requests), ("steps", steps)):
            table.round(9).to_csv(folder / f"{name}.csv.gz", index=False, compression={"method": "gzip", "mtime": 0})
        (folder / "meta.json").write_text(json.dumps(meta, indent=1))
    except OSError as error:
        raise EngineError(f"{folder}: {error.strerror}") from error
