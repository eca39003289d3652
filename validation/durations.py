"""Error of the scheduler alone: the trace is replayed, and every step takes what the same step of the real engine took."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.artifacts.artifact import Overheads
from simulator.cost import CostModel
from simulator.features import StepFeatures
from simulator.simulate import Result, simulate
from simulator.step.clock import Launch
from simulator.workload.base import NS_PER_S
from validation.batches import first_of_runs
from validation.replay import Replay

Int64 = NDArray[np.int64]

NEARBY = 16
"""Steps among which the measured step with the same prompts is looked for: an arrival may fall one step earlier or later."""


class MeasuredSteps(CostModel):
    """Durations in the order in which steps were measured; a step with prompts is looked up by its prompts."""

    def __init__(self, cost: CostModel, steps: pd.DataFrame, depth: int, overheads: Overheads) -> None:
        super().__init__(cost.artifact.model_copy(update={"overheads": overheads}))
        update_s = steps["update_s"].to_numpy(np.float64)
        since_s = np.where(first_of_runs(steps, depth), steps["schedule_s"], np.concatenate([[0.0], update_s[:-1]]))
        self.duration_ns: Int64 = np.rint((update_s - since_s) * NS_PER_S).astype(np.int64)
        self.composition = steps[["prefill_tokens", "decode_seqs"]].to_numpy(np.int64)
        self.asked = self.same = 0
        """Steps that were asked for, and those whose composition was the measured step's."""
        self._next = 0

    def gpu_ns(self, features: StepFeatures) -> int:
        """The measured duration of the step that this one is."""
        wanted = (features.prefill_tokens, features.decode_seqs)
        if features.prefill_tokens:
            low = max(self._next - NEARBY, 0)
            near = np.flatnonzero(self.composition[low : self._next + NEARBY, 0] == features.prefill_tokens) + low
            if len(near):
                self._next = int(near[np.abs(near - self._next).argmin()])
        step = min(self._next, len(self.duration_ns) - 1)
        self._next = step + 1
        self.asked += 1
        self.same += int(tuple(self.composition[step]) == wanted)
        return int(self.duration_ns[step])

    def launch(self, features: StepFeatures, chance: float | None = None) -> Launch:
        """None of its own: it is part of what was measured."""
        del features, chance
        return Launch(0, 0)


@dataclass(frozen=True, eq=False)
class OnMeasuredSteps:
    """The replay on measured durations."""

    result: Result
    preemptions: Int64
    """int64[n]: until the trace was cut."""
    same_composition: float
    """Share of the steps that held as many tokens of prompts, and as many decoding sequences, as the measured step."""


def on_measured_steps(replayed: Replay, steps: pd.DataFrame) -> OnMeasuredSteps:
    """Replays with the measured durations and the measured number of blocks, one replica, no speculation.

    Measured durations hold what the thread did between steps, so only the ways in and out remain: the recorded ones, where the trace
    tells the way in from the wait for the next step, else the cost model's.
    """
    scenario, meta = replayed.result.scenario, replayed.recording.meta
    overheads = scenario.cost.artifact.overheads.model_copy(update={"schedule_ns": 0})
    if meta.overheads and "to_scheduler_s" in meta.overheads:
        overheads = Overheads(**{f"{name}_ns": round(meta.overheads[f"{name}_s"] * NS_PER_S) for name in ("ingress", "egress")})
    cost, again = (MeasuredSteps(scenario.cost, steps, scenario.engine.depth, overheads) for _ in range(2))
    engine = scenario.engine.model_copy(update={"num_gpu_blocks": meta.engine.num_gpu_blocks, "block_size": meta.engine.block_size})
    scenario = replace(scenario, cost=cost, engine=engine, stride=1)
    result = simulate(scenario)
    cut = result if meta.cut_s is None else simulate(replace(scenario, cost=again, horizon_s=meta.cut_s))
    return OnMeasuredSteps(result, cut.preemptions, cost.same / cost.asked)
