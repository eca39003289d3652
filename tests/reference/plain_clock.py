"""Who is busy until when: the thread that schedules, the workers that launch for it where there are several GPUs, and the GPU."""

from __future__ import annotations

from simulator.cost import CostModel
from simulator.features import StepFeatures


class PlainClock:
    """Integer nanoseconds. `waits_for_workers` counts the steps that were handed over while workers still launched the one before."""

    def __init__(self, cost: CostModel) -> None:
        self.cost = cost
        self.thread_free_ns = self.workers_free_ns = self.gpu_free_ns = self.busy_ns = 0
        self.waits_for_workers = 0

    def launch(self, now_ns: int, features: StepFeatures) -> int:
        """The GPU works on one step after another, on none before its launch came to it, and is never done before the launch is."""
        gpu_ns, (lead_ns, launch_ns, hand_over_ns) = self.cost.gpu_ns(features), self.cost.launch(features)
        begin_ns = max(now_ns, self.thread_free_ns) + self.cost.artifact.overheads.schedule_ns
        if hand_over_ns is None:
            launched_ns = self.thread_free_ns = begin_ns + launch_ns
        else:
            self.thread_free_ns = begin_ns + hand_over_ns
            self.waits_for_workers += self.workers_free_ns > self.thread_free_ns
            begin_ns = max(self.thread_free_ns, self.workers_free_ns)
            launched_ns = self.workers_free_ns = begin_ns + launch_ns
        self.gpu_free_ns = max(max(self.gpu_free_ns, begin_ns + lead_ns) + gpu_ns, launched_ns)
        self.busy_ns += gpu_ns
        return self.gpu_free_ns
