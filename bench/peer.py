"""The fastest peer known to run here: the offline replay of ai-dynamo 1.4.1 (`pip install ai-dynamo==1.4.1`)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from bench.workloads import ARRIVAL_SEED, BLOCK_SIZE, LOADS, MAX_NUM_BATCHED_TOKENS, MAX_NUM_SEQS, NUM_GPU_BLOCKS

ENGINE = {
    "engine_type": "vllm",
    "num_gpu_blocks": NUM_GPU_BLOCKS,
    "block_size": BLOCK_SIZE,
    "max_num_seqs": MAX_NUM_SEQS,
    "max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS,
    "enable_prefix_caching": False,
    "enable_chunked_prefill": True,
}

_WALL_TIME = re.compile(r"Wall Time \(ms\): ([\d,.]+)")


def find_python(given: str | None) -> str | None:
    """The interpreter that has the peer: the one given, that of DYNAMO_PYTHON, or this one."""
    if given or os.environ.get("DYNAMO_PYTHON"):
        return given or os.environ["DYNAMO_PYTHON"]
    return sys.executable if find_spec("dynamo") else None


def can_run(name: str) -> bool:
    """Whether the peer's command line can describe the workload: all requests of one length."""
    return LOADS[name].output_tokens is not None


def measure(python: str, name: str) -> dict[str, float]:
    """One run; its "Wall Time" is the simulation alone."""
    load = LOADS[name]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        options = {
            "extra-engine-args": json.dumps(ENGINE),
            "num-workers": load.replicas,
            "input-tokens": load.prompt_tokens,
            "output-tokens": load.output_tokens,
            "request-count": load.requests,
            "request-rate": load.requests_per_s,
            "arrival-seed": ARRIVAL_SEED,
            "report-json": report,
        }
        command = [python, "-m", "dynamo.replay", *(str(part) for key, value in options.items() for part in (f"--{key}", value))]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)  # noqa: S603
        wall = _WALL_TIME.search(done.stdout)
        if wall is None:
            raise SystemExit(f"error: {python} -m dynamo.replay failed on {name}: {done.stderr.strip().splitlines()[-1:]}")
        summary = json.loads(report.read_text(encoding="utf-8"))
    return {
        "wall_s": float(wall[1].replace(",", "")) / 1000,
        "simulated_s": summary["duration_ms"] / 1000,
        "mean_e2e_s": summary["mean_e2e_latency_ms"] / 1000,
    }
