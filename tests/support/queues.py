"""Queues as degenerate engines: every token takes one step, a request of n tokens needs n of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.request import RequestTable
from simulator.simulate import NS_PER_S, Result, Scenario, simulate
from simulator.workload import OpenLoop, Workload

STEP_NS = 1_000_000


def engine(seats: int, *, async_scheduling: bool = False) -> EngineConfig:
    """`seats` servers, and memory for all of them."""
    return EngineConfig(num_gpu_blocks=3_000_000, max_num_seqs=seats, async_scheduling=async_scheduling)


def poisson_workload(rng: np.random.Generator, rate_per_s: float, output_tokens: np.ndarray) -> Workload:
    """Prompts of one token, which the first step computes while it emits the first token of the answer."""
    n = len(output_tokens)
    arrival_ns = np.cumsum(rng.exponential(NS_PER_S / rate_per_s, n)).astype(np.int64)
    return Workload(RequestTable.build(arrival_ns, np.ones(n, np.int64), output_tokens), OpenLoop())


def serve(workload: Workload, options: EngineConfig, cost: CostModel, sample_s: float = 1e4) -> Result:
    """One run, to the last answer."""
    return simulate(Scenario(workload, options, cost, sample_s=sample_s))


@dataclass(frozen=True)
class Interval:
    """A confidence interval (99.9 %) for the mean of independent runs."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, means_of_runs: list[float]) -> Interval:
        runs = np.array(means_of_runs)
        quantile = stats.t.ppf(0.9995, len(runs) - 1)
        return cls(float(runs.mean()), float(quantile * runs.std(ddof=1) / np.sqrt(len(runs))))

    def agrees_with(self, theory: float, *, within: float) -> bool:
        """Whether theory lies in the interval, and the interval is narrower than the share `within` of it: it could have failed."""
        return abs(self.mean - theory) <= self.half_width <= within * theory
