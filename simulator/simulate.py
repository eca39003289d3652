"""`simulate(scenario)`: one run of a service, from its traffic to what became of every request. Pure and seeded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import simpy
from numpy.typing import NDArray

from simulator.cluster import NS_PER_S, Cluster, Timeline
from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.errors import UserError
from simulator.request import RequestTable
from simulator.router import make_router
from simulator.sequence import NEVER
from simulator.speculation import Acceptance, Drafting
from simulator.steplog import StepLog
from simulator.workload import Workload

Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Scenario:
    """All that a run depends on."""

    workload: Workload
    engine: EngineConfig
    cost: CostModel
    num_replicas: int = 1
    router: str = "least_requests"
    seed: int = 0
    """For the router; the workload was drawn with its own."""
    stride: int | None = None
    """Steps taken at once at most; None: as many as can be. Never changes a result; 1 is the reference engine."""
    horizon_s: float | None = None
    """The run ends here, or when all requests are finished."""
    sample_s: float = 1.0
    """Distance of the timeline's samples."""
    acceptance: Acceptance | None = None
    """What the drafts of `engine.speculative` are worth on this traffic."""


@dataclass(frozen=True, eq=False)
class Result:
    """What became of a scenario. Per-request columns have shape (n,), times as the client sees them; −1: not by the end of the run."""

    scenario: Scenario
    sent_ns: Int64
    scheduled_ns: Int64
    """When the engine first put the request into a step."""
    first_token_ns: Int64
    visible_ns: Int64
    """Arrival of the first token after the thinking; −1 also where the output ended while thinking."""
    finish_ns: Int64
    emitted_tokens: Int64
    preemptions: Int64
    cached_tokens: Int64
    """Prompt tokens that the prefix cache had when the request was first scheduled (vLLM's `num_cached_tokens`); 0 without one."""
    replica: Int64
    timeline: Timeline
    logs: list[StepLog]
    """One a replica."""
    busy_ns: Int64
    """int64[replicas]: time that the GPU worked, of the steps launched."""
    end_ns: int
    """Length of the run."""
    num_events: int
    """Scheduling events: times that an engine took in results and planned again."""

    @property
    def requests(self) -> RequestTable:
        """What was asked, in the same order."""
        return self.scenario.workload.requests


def simulate(scenario: Scenario, on_progress: Callable[[int, int], None] | None = None) -> Result:
    """Runs the scenario; `on_progress` is told of (requests finished, all requests) now and then.

    Raises:
        UserError: a request does not fit into the engine, or a number makes no sense.
    """
    _check(scenario)
    env = simpy.Environment(initial_time=0)  # an integer clock, nanoseconds
    router = make_router(scenario.router, scenario.seed)
    drafting = None if scenario.acceptance is None else Drafting(scenario.acceptance, scenario.seed)
    cluster = Cluster(env, scenario.engine, scenario.cost, scenario.num_replicas, router, scenario.stride, drafting)
    workload = scenario.workload
    cluster.serve(workload.requests, workload.loop)
    cluster.observe(round(scenario.sample_s * NS_PER_S), on_progress)
    horizon_ns = None if scenario.horizon_s is None else round(scenario.horizon_s * NS_PER_S)
    if len(workload.requests):
        stop = cluster.done if horizon_ns is None else cluster.done | env.timeout(horizon_ns)
        env.run(until=stop)
    return _result(scenario, cluster)


def _check(scenario: Scenario) -> None:
    requests, engine = scenario.workload.requests, scenario.engine
    if scenario.num_replicas < 1:
        raise UserError(f"num_replicas is {scenario.num_replicas}; at least 1 is needed")
    if scenario.stride is not None and scenario.stride < 1:
        raise UserError(f"stride is {scenario.stride}; it must be at least 1")
    if scenario.sample_s <= 0 or (scenario.horizon_s is not None and scenario.horizon_s <= 0):
        raise UserError("sample_s and horizon_s must be greater than 0")
    if (engine.speculative is None) != (scenario.acceptance is None):
        raise UserError("engine.speculative and acceptance: give both or neither")
    if scenario.acceptance is not None and len(scenario.acceptance.rates) != engine.decode_query_len - 1:
        raise UserError(
            f"acceptance has rates for {len(scenario.acceptance.rates)} drafts, num_speculative_tokens is {engine.decode_query_len - 1}"
        )
    too_long = requests.prompt_tokens + requests.output_tokens > engine.max_model_len
    if too_long.any():
        row = int(too_long.argmax())
        total = int(requests.prompt_tokens[row] + requests.output_tokens[row])
        raise UserError(f"request {requests.request_id[row]} has {total} tokens, max_model_len is {engine.max_model_len}")


def _result(scenario: Scenario, cluster: Cluster) -> Result:
    requests, egress_ns = scenario.workload.requests, scenario.cost.artifact.overheads.egress_ns
    for replica in cluster.replicas:
        replica.close()
    sequences = cluster.sequences
    logs = [replica.log for replica in cluster.replicas]
    emitted_tokens, visible_ns = _read_logs(requests, logs)

    def column(name: str, later_ns: int = 0) -> Int64:
        values = np.array([NEVER if s is None else getattr(s, name) for s in sequences], np.int64)
        return np.where(values == NEVER, NEVER, values + later_ns)

    return Result(
        scenario=scenario,
        sent_ns=cluster.sent_ns,
        scheduled_ns=column("scheduled_ns"),
        first_token_ns=column("first_token_ns", egress_ns),
        visible_ns=np.where(visible_ns == NEVER, NEVER, visible_ns + egress_ns),
        finish_ns=cluster.finish_ns,
        emitted_tokens=emitted_tokens,
        preemptions=np.array([0 if s is None else s.preemptions for s in sequences], np.int64),
        cached_tokens=np.array([0 if s is None else s.cached_tokens for s in sequences], np.int64),
        replica=cluster.replica_of,
        timeline=cluster.timeline(),
        logs=logs,
        busy_ns=np.array([replica.busy_ns for replica in cluster.replicas], np.int64),
        end_ns=cluster.now_ns,
        num_events=sum(replica.num_events for replica in cluster.replicas),
    )


def _read_logs(requests: RequestTable, logs: list[StepLog]) -> tuple[Int64, Int64]:
    """(tokens emitted, end of the step that emitted the first visible token), each int64[n]."""
    n = len(requests)
    emitted, visible_ns = np.zeros(n, np.int64), np.full(n, NEVER, np.int64)
    for log in logs:
        row, token, _, _ = log.segments.T
        last_token = log.last_tokens
        np.maximum.at(emitted, row, last_token)
        wanted = requests.visible_token[row]
        within = np.flatnonzero((token <= wanted) & (wanted <= last_token))
        visible_ns[row[within]] = log.end_ns(log.steps_of(within, wanted[within]))
    return emitted, visible_ns
