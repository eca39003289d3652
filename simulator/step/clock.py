"""An engine has two clocks: the thread that schedules, launches and handles outputs, and the GPU. With several GPUs, workers launch."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


class Launch(NamedTuple):
    """How a step comes to the GPU, integer nanoseconds."""

    lead_ns: int
    """From its launch's begin to the first kernel, …"""
    launch_ns: int
    """… and to its end."""
    hand_over_ns: int | None = None
    """What the thread that schedules does before other processes can begin to launch the step; None: it launches itself."""

    @property
    def turn_ns(self) -> int:
        """From one step to the next, at least."""
        return max(self.launch_ns, self.hand_over_ns or 0)


class EngineClock:
    """When launches and GPU work end, integer nanoseconds.

    A step's launch begins when the thread has chosen its batch (`schedule_ns` after the result that made room for it), its GPU
    work when both the launch has come to its first kernel (`lead_ns`) and the step before it is done, and it cannot be over before
    its launch is. A result is handled once its GPU work is done and the thread has finished the launch it was busy with. Source: vLLM 0.26
    `v1/engine/core.py` `step_with_batch_queue`, where one thread launches step N+1 before it waits for step N.

    With several GPUs the thread only hands the batch over, and is free; the workers launch one step after another (vLLM 0.26
    `v1/executor/multiproc_executor.py` `worker_busy_loop`).
    """

    __slots__ = ("cpu_free_ns", "gpu_free_ns", "launched_ns", "schedule_ns")

    def __init__(self, schedule_ns: int) -> None:
        self.schedule_ns = schedule_ns
        self.cpu_free_ns = 0
        self.gpu_free_ns = 0
        self.launched_ns = 0
        """When the last launch ends."""

    def launch(self, now_ns: int, gpu_ns: int, launch: Launch) -> int:
        """Launches a step that was chosen at `now_ns`; returns when its GPU work ends."""
        lead_ns, launch_ns, hand_over_ns = launch
        start_ns = max(now_ns, self.cpu_free_ns) + self.schedule_ns
        if hand_over_ns is None:
            self.cpu_free_ns = self.launched_ns = start_ns + launch_ns
        else:
            self.cpu_free_ns = start_ns + hand_over_ns
            start_ns = max(self.cpu_free_ns, self.launched_ns)
            self.launched_ns = start_ns + launch_ns
        self.gpu_free_ns = max(max(self.gpu_free_ns, start_ns + lead_ns) + gpu_ns, self.launched_ns)
        return self.gpu_free_ns

    def after_result(self, launch: Launch) -> tuple[int, int]:
        """(lead, launch): from a result to the first kernel of the step that is launched then, and to the end of its launch."""
        ready_ns = self.schedule_ns + (launch.hand_over_ns or 0)
        return ready_ns + launch.lead_ns, ready_ns + launch.launch_ns

    def keeps_up(self, first_ns: int, next_gpu_end_ns: int, gpu_ns: Int64, launch: Launch) -> bool:
        """Whether `steady_ends` holds: workers may still launch a step when they are handed the next, and then it does not.

        `first_ns`, `next_gpu_end_ns` and `gpu_ns` are its arguments, two steps in flight.
        """
        if launch.hand_over_ns is None:
            return True
        _, cpu_ns = self.after_result(launch)
        begin_ns = max(first_ns + cpu_ns - launch.launch_ns, self.launched_ns)
        return begin_ns + launch.launch_ns <= next_gpu_end_ns and cpu_ns <= int(gpu_ns.min())

    def passed(self, last_end_ns: int, gpu_end_ns: int, launch: Launch) -> None:
        """Steps of `steady_ends` went by: the last but one result came at `last_end_ns`, the GPU is busy until `gpu_end_ns`."""
        self.gpu_free_ns = gpu_end_ns
        self.launched_ns = last_end_ns + self.after_result(launch)[1]
        self.cpu_free_ns = self.launched_ns if launch.hand_over_ns is None else self.launched_ns - launch.launch_ns


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
