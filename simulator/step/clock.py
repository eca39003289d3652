"""An engine has two clocks: the thread that schedules, launches and handles outputs, and the GPU."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


class EngineClock:
    """When launches and GPU work end, integer nanoseconds.

    A step's launch begins when the thread has chosen its batch (`schedule_ns` after the result that made room for it), its GPU
    work when both the launch has come to its first kernel (`lead_ns`) and the step before it is done, and it cannot be over before
    its launch is. A result is handled once its GPU work is done and the thread has finished the launch it was busy with. Source: vLLM 0.26
    `v1/engine/core.py` `step_with_batch_queue`, where one thread launches step N+1 before it waits for step N.
    """

    __slots__ = ("cpu_free_ns", "gpu_free_ns", "schedule_ns")

    def __init__(self, schedule_ns: int) -> None:
        self.schedule_ns = schedule_ns
        self.cpu_free_ns = 0
        self.gpu_free_ns = 0

    def launch(self, now_ns: int, gpu_ns: int, launch_ns: int, lead_ns: int) -> int:
        """Launches a step that was chosen at `now_ns`; returns when its GPU work ends."""
        start_ns = max(now_ns, self.cpu_free_ns) + self.schedule_ns
        self.cpu_free_ns = start_ns + launch_ns
        self.gpu_free_ns = max(max(self.gpu_free_ns, start_ns + lead_ns) + gpu_ns, self.cpu_free_ns)
        return self.gpu_free_ns


def steady_ends(
    depth: int, first_ns: int, next_gpu_end_ns: int, gpu_ns: Int64, lead_ns: int, cpu_ns: int
) -> tuple[list[int] | Int64, list[int] | Int64]:
    """Ends of k successive steps of a steady decode, and what the GPU is doing then.

    Args:
        depth: steps in flight, 1 or 2.
        first_ns: when the result of the first step is handled.
        next_gpu_end_ns: when the GPU work of the other step in flight ends (depth 2; unused with depth 1).
        gpu_ns: int64[k − 1], GPU time of the steps that are launched on the way, one at each end but the last.
        lead_ns: from a result to the first kernel of the step that is launched then.
        cpu_ns: from a result to the end of that launch, at least `lead_ns`.

    Returns:
        int64[k]: when the result of each step is handled. int64[k]: when the GPU work ends that is in flight after it
        (depth 2; with depth 1, of the step itself).
    """
    ends = np.empty(len(gpu_ns) + 1, np.int64)
    if depth == 1:
        ends[0] = first_ns
        np.cumsum(np.maximum(gpu_ns + lead_ns, cpu_ns), out=ends[1:])
        ends[1:] += first_ns
        return ends, ends
    if cpu_ns <= next_gpu_end_ns - first_ns and (cpu_ns == 0 or cpu_ns <= gpu_ns.min(initial=cpu_ns)):
        # The GPU is never short of work: its steps follow one another.
        gpu_ends = np.empty(len(gpu_ns) + 1, np.int64)
        gpu_ends[0] = next_gpu_end_ns
        np.cumsum(gpu_ns, out=gpu_ends[1:])
        gpu_ends[1:] += next_gpu_end_ns
        ends[0] = first_ns
        ends[1:] = gpu_ends[:-1]
        return ends, gpu_ends
    return _step_by_step(first_ns, next_gpu_end_ns, gpu_ns.tolist(), lead_ns, cpu_ns)


def _step_by_step(first_ns: int, next_gpu_end_ns: int, gpu_ns: list[int], lead_ns: int, cpu_ns: int) -> tuple[list[int], list[int]]:
    def step(state: tuple[int, int], gpu_ns: int) -> tuple[int, int]:
        end_ns, gpu_end_ns = state
        launched_ns = end_ns + cpu_ns
        return max(gpu_end_ns, launched_ns), max(max(gpu_end_ns, end_ns + lead_ns) + gpu_ns, launched_ns)

    states = list(accumulate(gpu_ns, step, initial=(first_ns, next_gpu_end_ns)))
    return [end for end, _ in states], [gpu_end for _, gpu_end in states]
