"""One candidate under one seed's traffic: simulated, measured in steady state, and reduced to what a plan needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simulator.cost import CostModel
from simulator.domain import outside_domain
from simulator.engine import EngineConfig
from simulator.errors import UserError
from simulator.metrics import Latency, SloOutcome, judge, latencies
from simulator.simulate import Result, Scenario, simulate
from simulator.slo import Slos
from simulator.steady import Period
from simulator.workload import BarrierSpec, ClosedSpec, ReplaySpec, Workload, WorkloadSpec, generate
from simulator.workload.base import NS_PER_S

if TYPE_CHECKING:
    from simulator.config import Config

Float64 = NDArray[np.float64]

SAMPLES = 400
"""Of the timeline; at most one a second."""


@dataclass(frozen=True, eq=False)
class Question:
    """How many replicas keep `slos` under this traffic?"""

    workload: WorkloadSpec
    engine: EngineConfig
    cost: CostModel
    slos: Slos
    router: str = "least_requests"
    seed: int = 0
    """Of the first run; the others follow."""
    num_seeds: int = 4
    """Runs of every candidate, each with traffic of its own; all candidates see the same."""
    max_gpus: int = 64
    confidence: float = 0.95
    measured_s: float | None = None
    """Steady state that each run measures; None: as long as the answer needs."""

    def __post_init__(self) -> None:
        if isinstance(self.workload, ClosedSpec | BarrierSpec):
            raise UserError(
                f"workload.kind: plan takes open, clients or replay; the clients of {self.workload.kind} wait for a slow service"
            )

    @classmethod
    def of(cls, config: Config) -> Question:
        """The question that a configuration asks.

        Raises:
            UserError: its cost model cannot be read, or an option makes no sense.
        """
        if config.slo is None:
            raise UserError("command: plan needs a limit in slo, such as slo.tpot_ms.p99=13")
        cost, options = config.load_cost(), config.plan
        return cls(
            workload=config.workload,
            engine=config.engine_config(cost),
            cost=cost,
            slos=config.slo,
            router=config.cluster.router,
            seed=config.seed,
            num_seeds=options.num_seeds,
            max_gpus=options.max_gpus,
            confidence=options.confidence,
            measured_s=None if options.hours is None else options.hours * 3600,
        )

    @property
    def gpus_per_replica(self) -> int:
        return self.cost.artifact.tensor_parallel_size

    @property
    def max_replicas(self) -> int:
        return self.max_gpus // self.gpus_per_replica

    @property
    def replays(self) -> bool:
        """A trace is what it is: one run, whatever the seeds."""
        return isinstance(self.workload, ReplaySpec)

    @property
    def seeds(self) -> range:
        """Of the traffic."""
        return range(self.seed, self.seed + (1 if self.replays else self.num_seeds))

    def traffic(self, seed: int, *, duration_s: float | None = None, num_requests: int | None = None) -> Workload:
        """The requests of one run: the same for every candidate."""
        return generate(self.workload, seed, max_model_len=self.engine.max_model_len, duration_s=duration_s, num_requests=num_requests)


@dataclass(frozen=True, eq=False)
class Trial:
    """What one run showed; requests are those that arrived in the period's window."""

    num_replicas: int
    seed: int
    outcomes: list[SloOutcome]
    """One an SLO, in their order."""
    latencies: dict[str, Latency]
    in_system: Float64
    """float64[samples]: requests sent and unanswered, from the end of the warm-up to the end of the run."""
    waiting: Float64
    """The same of those that hold no seat."""
    time_s: Float64
    """float64[m]: of the timeline, which covers the whole run."""
    kv_usage: Float64
    """float64[m, replicas]: share of the blocks that are held."""
    running: Float64
    """float64[m], all replicas together, as the next."""
    queue: Float64
    preemptions: int
    num_requests: int
    rejected: int
    """Prompts of `max_model_len` or more, of the whole run."""
    output_tokens_per_s: float
    gpu_utilization: float
    outside_domain: dict[str, float]
    """Share of steps above what was measured, by feature."""
    simulated_s: float
    simulated_requests: int


def run_trial(question: Question, period: Period, num_replicas: int, seed: int) -> Trial:
    """Simulates one candidate under one seed's traffic."""
    workload = question.traffic(seed, duration_s=period.window[1] if question.replays else period.end_s)
    scenario = Scenario(
        workload=workload,
        engine=question.engine,
        cost=question.cost,
        num_replicas=num_replicas,
        router=question.router,
        seed=seed,
        horizon_s=period.end_s,
        sample_s=max(1.0, period.end_s / SAMPLES),
    )
    return _reduce(question.slos, period, simulate(scenario), seed)


def _reduce(slos: Slos, period: Period, result: Result, seed: int) -> Trial:
    timeline, workload, (low_s, high_s) = result.timeline, result.scenario.workload, period.window
    time_s = timeline.time_ns / NS_PER_S
    steady = (low_s <= time_s) & (time_s <= high_s)
    in_system, waiting = timeline.running.sum(1) + timeline.waiting.sum(1), timeline.waiting.sum(1)
    found = latencies(result, period.window)
    return Trial(
        num_replicas=result.scenario.num_replicas,
        seed=seed,
        outcomes=judge(result, slos, period.window),
        latencies={name: latency for name, latency in found.items() if name != "queue"},
        in_system=in_system[steady].astype(np.float64),
        waiting=waiting[steady].astype(np.float64),
        time_s=time_s,
        kv_usage=timeline.kv_blocks / result.scenario.engine.usable_blocks,
        running=timeline.running.sum(1).astype(np.float64),
        queue=waiting.astype(np.float64),
        preemptions=int(result.preemptions.sum()),
        num_requests=len(found["e2e"]),
        rejected=workload.rejected,
        output_tokens_per_s=float(result.emitted_tokens.sum()) / (result.end_ns / NS_PER_S),
        gpu_utilization=float(result.busy_ns.mean() / result.end_ns),
        outside_domain=outside_domain(result),
        simulated_s=result.end_ns / NS_PER_S,
        simulated_requests=int((result.sent_ns >= 0).sum()),
    )
