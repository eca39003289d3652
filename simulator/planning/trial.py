"""One candidate under one seed's traffic: simulated, measured in steady state, and reduced to what a plan needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simulator.artifacts.domain import outside_domain
from simulator.clients.patience import ClientConfig
from simulator.cluster import Group
from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.errors import UserError
from simulator.fleet.disaggregation import Disaggregation
from simulator.fleet.spares import Spares
from simulator.metrics import Latency, SloOutcome, judge, latencies
from simulator.planning.sizing import Demand
from simulator.planning.slo import Slos
from simulator.planning.steady import Period
from simulator.planning.underway import Start, begin
from simulator.policies.policy import VLLM, Policy
from simulator.policies.predictor import Predictor, foretell
from simulator.reporting.summary import attempt_figures
from simulator.simulate import Result, Scenario, simulate
from simulator.speculation import Acceptance
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
    model: str = ""
    """As it was asked for; the cost model may be that of another one of its shape."""
    clients: ClientConfig | None = None
    others: tuple[Group, ...] = ()
    """Replicas that are there anyway, behind the same router."""
    disaggregation: Disaggregation | None = None
    """A share of the replicas computes prompts; its `prefill_share` is given."""
    router: str = "least_requests"
    predictor: Predictor | None = None
    policy: Policy = VLLM
    seed: int = 0
    """Of the first run; the others follow."""
    num_seeds: int = 4
    """Runs of every candidate, each with traffic of its own; all candidates see the same. More where it is close."""
    max_gpus: int = 64
    confidence: float = 0.95
    acceptance: Acceptance | None = None
    """Of drafts, where the engine speculates."""
    spares: Spares | None = None
    """How nodes fail, for the number to own."""
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
            model=config.model.name,
            acceptance=config.accepted(),
            clients=config.clients,
            others=config.pools(),
            disaggregation=config.split(cost),
            router=config.cluster.router,
            predictor=config.predictor,
            policy=config.policy,
            seed=config.seed,
            num_seeds=options.num_seeds,
            max_gpus=options.max_gpus,
            confidence=options.confidence,
            spares=options.spares,
            measured_s=None if options.hours is None else options.hours * 3600,
        )

    def split(self, num_replicas: int) -> Disaggregation | None:
        """How so many replicas are split; None: each does both, as one alone must."""
        if self.disaggregation is None or num_replicas == 1:
            return None
        return self.disaggregation.model_copy(update={"prefill_replicas": self.disaggregation.prefills(num_replicas)})

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
        """Of the traffic that every candidate meets."""
        return self.first_seeds(self.num_seeds)

    def first_seeds(self, runs: int) -> range:
        """Of so many runs."""
        return range(self.seed, self.seed + (1 if self.replays else runs))

    def traffic(self, seed: int, *, duration_s: float | None = None, num_requests: int | None = None) -> Workload:
        """The requests of one run: the same for every candidate."""
        longest = self.engine.max_model_len
        drawn = generate(self.workload, seed, max_model_len=longest, duration_s=duration_s, num_requests=num_requests)
        return foretell(drawn, self.predictor, self.workload, seed, longest)


@dataclass(frozen=True, eq=False)
class Trial:
    """What one run showed; requests are those that arrived in the period's window."""

    num_replicas: int
    seed: int
    outcomes: list[SloOutcome]
    """One an SLO, in their order."""
    latencies: dict[str, Latency]
    in_system: Float64
    """float64[samples]: requests sent and unanswered, while those that arrive are measured."""
    waiting: Float64
    """The same of those that hold no seat."""
    started: int
    """Requests that were under way when the run began."""
    time_s: Float64
    """float64[m]: of the timeline, from when the traffic goes on to the end of the run."""
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
    """Share of the measured time in steps above what the cost model was measured for, by feature."""
    simulated_s: float
    simulated_requests: int
    """Those under way at the start included."""
    attempts: dict[str, float] | None = None
    """`summary.attempt_figures` of the measured window; None: clients wait for ever."""


def run_trial(question: Question, demand: Demand, period: Period, num_replicas: int, seed: int) -> Trial:
    """Simulates one candidate under one seed's traffic."""
    split = question.split(num_replicas)
    if question.replays:
        start = Start(question.traffic(seed, duration_s=period.window[1]), 0, 0.0)
    else:
        traffic = question.traffic(seed, duration_s=period.past_s + period.end_s)
        start = begin(traffic, period.past_s, demand, num_replicas, split.prefill_replicas if split else None)
    scenario = Scenario(
        workload=start.workload,
        engine=question.engine,
        cost=question.cost,
        num_replicas=num_replicas - split.prefill_replicas if split else num_replicas,
        disaggregation=split,
        router=question.router,
        policy=question.policy,
        seed=seed,
        horizon_s=start.lead_s + period.end_s,
        sample_s=max(1.0, period.end_s / SAMPLES),
        acceptance=question.acceptance,
        clients=question.clients,
        others=question.others,
    )
    return _reduce(question.slos, period, start, simulate(scenario), seed, num_replicas)


def _reduce(slos: Slos, period: Period, start: Start, result: Result, seed: int, num_replicas: int) -> Trial:
    timeline, window = result.timeline, (start.lead_s + period.window[0], start.lead_s + period.window[1])
    time_s = timeline.time_ns / NS_PER_S
    shown, steady = time_s >= start.lead_s, (window[0] <= time_s) & (time_s <= window[1])
    running, waiting = timeline.running.sum(1).astype(np.float64), timeline.waiting.sum(1).astype(np.float64)
    found = latencies(result, window)
    return Trial(
        num_replicas=num_replicas,
        seed=seed,
        outcomes=judge(result, slos, window),
        latencies={name: latency for name, latency in found.items() if name != "queue"},
        in_system=(running + waiting)[steady],
        waiting=waiting[steady],
        started=start.num_requests,
        time_s=time_s[shown] - start.lead_s,
        kv_usage=timeline.kv_blocks[shown] / result.usable_blocks,
        running=running[shown],
        queue=waiting[shown],
        preemptions=int(result.preemptions.sum()),
        num_requests=len(found["e2e"]),
        rejected=start.workload.rejected,
        output_tokens_per_s=float(result.emitted_tokens.sum()) / (result.end_ns / NS_PER_S),
        gpu_utilization=result.gpu_utilization,
        outside_domain=outside_domain(result, window),
        simulated_s=result.end_ns / NS_PER_S,
        simulated_requests=int((result.asked_ns >= 0).sum()),
        attempts=None if result.attempts is None else attempt_figures(result, result.attempts, window),
    )
