"""One run of one workload in a process of its own: `python -m bench.once W2 [ARTIFACT]` prints its figures as JSON."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from bench.workloads import cost_model, scenario
from simulator.simulate import simulate

MIB = 1 << 20


def measure(name: str, artifact: Path | None) -> dict[str, float]:
    """Times `simulate` alone: not the interpreter's start, nor the drawing of the workload."""
    prepared = scenario(name, cost_model(artifact))
    before = _reset_peak()
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    result = simulate(prepared)
    wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    peak = _peak()
    return {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "requests": len(result.requests),
        "output_tokens": int(result.emitted_tokens.sum()),
        "events": result.num_events,
        "steps": sum(log.num_steps for log in result.logs),
        "preemptions": int(result.preemptions.sum()),
        "simulated_s": result.end_ns / 1e9,
        "mean_e2e_s": float((result.finish_ns - result.sent_ns).mean()) / 1e9,
        "growth_mib": (peak - before) / MIB,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB,
    }


def _reset_peak() -> int:
    """Makes the kernel forget this process's peak so far; returns the resident bytes now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None)))
