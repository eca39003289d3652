"""A result as one number: equal for equal results, whatever the stride."""

from __future__ import annotations

import sys
from hashlib import sha256

import numpy as np

from simulator.simulate import Result, simulate
from tests.support.services import random_scenario

COLUMNS = ["sent_ns", "scheduled_ns", "first_token_ns", "visible_ns", "finish_ns", "emitted_tokens", "preemptions", "replica", "busy_ns"]
COLUMNS += ["cached_tokens", "held_back"]
SAMPLES = ["time_ns", "kv_blocks", "running", "waiting", "batch_tokens"]


def digest(result: Result) -> str:
    """SHA-256 of all that happened: columns, samples, and every step's end, stretches taken apart."""
    happened = sha256(str(result.end_ns).encode())
    arrays = [getattr(result, name) for name in COLUMNS] + [getattr(result.timeline, name) for name in SAMPLES]
    for log in result.logs:
        segments = log.segments
        arrays += [segments[np.lexsort(segments.T)], *(ends for _, ends in log.iter_ends(steps_at_once=1 << 62))]
    for array in arrays:
        happened.update(str(array.shape).encode())
        happened.update(np.ascontiguousarray(array).astype(np.int64).tobytes())
    return happened.hexdigest()


def main() -> None:
    """Prints the digests of a few runs, for another process to compare."""
    sys.stdout.write("\n".join(digest(simulate(random_scenario(seed))) for seed in range(5)))
