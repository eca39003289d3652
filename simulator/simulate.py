"""`simulate(scenario)`: one run of a service, from its traffic to what became of every request. Pure and seeded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import nan

import numpy as np
import simpy
from numpy.typing import NDArray

from simulator.clients.attempts import Attempts
from simulator.clients.clients import Clients
from simulator.clients.impatience import ImpatientClients
from simulator.clients.patience import ClientConfig
from simulator.cluster import NS_PER_S, Cluster, Group, Timeline
from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.errors import UserError
from simulator.fleet.autoscaler import Autoscaler, Autoscaling
from simulator.fleet.disaggregation import Disaggregation, SplitCluster
from simulator.fleet.fleet import Fleet
from simulator.fleet.outages import Outages, happen
from simulator.policies.policy import VLLM, Policy
from simulator.replica import Replica
from simulator.request import RequestTable
from simulator.routers import make_router
from simulator.speculation import Acceptance, Drafting
from simulator.step.sequence import NEVER
from simulator.step.steplog import StepLog
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
    policy: Policy = VLLM
    """What the engines do otherwise than vLLM."""
    seed: int = 0
    """For the router and the clients' patience; the workload was drawn with its own."""
    stride: int | None = None
    """Steps taken at once at most; None: as many as can be. Never changes a result; 1 is the reference engine."""
    horizon_s: float | None = None
    """The run ends here, or when all requests are finished."""
    sample_s: float = 1.0
    """Distance of the timeline's samples."""
    acceptance: Acceptance | None = None
    """What the drafts of `engine.speculative` are worth on this traffic."""
    clients: ClientConfig | None = None
    """None: they wait for every answer as long as it takes."""
    others: tuple[Group, ...] = ()
    """Further replicas, of other engines or GPUs, behind the same router."""
    outages: Outages | None = None
    """Failures, drains and rolling deploys."""
    autoscaling: Autoscaling | None = None
    """The number of replicas follows the load; `num_replicas` are there at the start."""

    disaggregation: Disaggregation | None = None
    """Prompts are computed by replicas of their own."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """All replicas, the main group first."""
        others = (replace(group, policy=self.policy) for group in self.others)
        if self.disaggregation is not None:
            prefill = Group("prefill", self.engine, self.cost, self.disaggregation.prefill_replicas, self.policy)
            return (Group("decode", self.engine, self.cost, self.num_replicas, self.policy), *others, prefill)
        return (Group("main", self.engine, self.cost, self.num_replicas, self.policy), *others)


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
    held_back: NDArray[np.bool_]
    """Whether the request had to wait for predicted room while it would have fitted."""
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
    group: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64[replicas]: index into `scenario.groups`."""
    lifetime_ns: Int64 = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    """int64[replicas, 2]: since when each replica was there, and until when."""
    gpu_ns: int = 0
    """GPU time that the service held: of those that start, drain or are broken, too."""
    attempts: Attempts | None = None
    """Of impatient clients: then a row is an attempt, and `finish_ns` that of an answer that came in time."""

    @property
    def requests(self) -> RequestTable:
        """What was asked, in the same order."""
        return self.scenario.workload.requests if self.attempts is None else self.attempts.requests

    @property
    def asked_ns(self) -> Int64:
        """int64[n]: when the request was first sent, −1 if it was not; `sent_ns` unless this is a retry."""
        return self.sent_ns if self.attempts is None else self.attempts.asked_ns

    @property
    def usable_blocks(self) -> Int64:
        """int64[replicas]: size of each one's KV pool."""
        return np.array([self.scenario.groups[index].engine.usable_blocks for index in self.group.tolist()], np.int64)

    @property
    def gpu_utilization(self) -> float:
        """Share of the replicas' time in which their GPUs worked; the last step launched may end after the run."""
        there_ns = int((self.lifetime_ns[:, 1] - self.lifetime_ns[:, 0]).sum())
        return min(float(self.busy_ns.sum()) / there_ns, 1.0) if there_ns else nan


def simulate(scenario: Scenario, on_progress: Callable[[int, int], None] | None = None) -> Result:
    """Runs the scenario; `on_progress` is told of (requests finished, all requests) now and then.

    Raises:
        UserError: a request does not fit into the engine, or a number makes no sense.
    """
    _check(scenario)
    env = simpy.Environment(initial_time=0)  # an integer clock, nanoseconds
    drafting = None if scenario.acceptance is None else Drafting(scenario.acceptance, scenario.seed)
    if scenario.disaggregation is None:
        cluster = Cluster(env, scenario.groups, make_router(scenario.router, scenario.seed), scenario.stride, drafting, scenario.seed)
    else:
        split = scenario.disaggregation
        cluster = SplitCluster(env, scenario.groups, scenario.router, scenario.seed, scenario.stride, split, drafting)
    workload = scenario.workload
    fleet = Fleet(cluster, scenario.seed)
    if scenario.outages is not None:
        happen(fleet, scenario.outages)
    if scenario.autoscaling is not None:
        Autoscaler(fleet, scenario.autoscaling)
    if scenario.clients is None and scenario.outages is None:
        clients = Clients(cluster, workload)
    else:
        # Where replicas fail, clients notice: without a config they try once.
        clients = ImpatientClients(cluster, workload, scenario.clients or ClientConfig(), scenario.seed)

    def tell() -> None:
        if on_progress is not None:
            on_progress(clients.num_requests - clients.unsettled, clients.num_requests)

    cluster.observe(round(scenario.sample_s * NS_PER_S), tell)
    horizon_ns = None if scenario.horizon_s is None else round(scenario.horizon_s * NS_PER_S)
    if len(workload.requests):
        stop = clients.done if horizon_ns is None else clients.done | env.timeout(horizon_ns)
        env.run(until=stop)
    return _result(scenario, cluster, clients, fleet)


def _check(scenario: Scenario) -> None:
    requests = scenario.workload.requests
    if scenario.num_replicas < 1:
        raise UserError(f"num_replicas is {scenario.num_replicas}; at least 1 is needed")
    if scenario.stride is not None and scenario.stride < 1:
        raise UserError(f"stride is {scenario.stride}; it must be at least 1")
    if scenario.sample_s <= 0 or (scenario.horizon_s is not None and scenario.horizon_s <= 0):
        raise UserError("sample_s and horizon_s must be greater than 0")
    _check_together(scenario)
    longest = min(group.engine.max_model_len for group in scenario.groups)
    too_long = requests.prompt_tokens + requests.output_tokens > longest
    if too_long.any():
        row = int(too_long.argmax())
        total = int(requests.prompt_tokens[row] + requests.output_tokens[row])
        raise UserError(f"request {requests.request_id[row]} has {total} tokens, max_model_len is {longest}")


def _check_together(scenario: Scenario) -> None:
    """What is simulated, but not in one engine."""
    acceptance = scenario.acceptance
    drafting = [group.engine for group in scenario.groups if group.engine.speculative is not None]
    if bool(drafting) != (acceptance is not None):
        raise UserError("engine.speculative and acceptance: give both or neither")
    if acceptance is None:
        return
    for engine in drafting:
        if len(acceptance.rates) != engine.decode_query_len - 1:
            raise UserError(
                f"acceptance has rates for {len(acceptance.rates)} drafts, num_speculative_tokens is {engine.decode_query_len - 1}"
            )


def _result(scenario: Scenario, cluster: Cluster, clients: Clients, fleet: Fleet) -> Result:
    attempts = clients.attempts() if isinstance(clients, ImpatientClients) else None
    requests = scenario.workload.requests if attempts is None else attempts.requests
    for replica in cluster.replicas:
        replica.close()
    sequences = clients.sequences
    emitted_tokens, visible_ns = _read_logs(requests, cluster.replicas)
    stopped_ns = np.array(cluster.stopped_ns, np.int64)

    def column(name: str) -> Int64:
        return np.array([NEVER if s is None else getattr(s, name) for s in sequences], np.int64)

    first_token_ns = column("first_token_ns")
    return Result(
        scenario=scenario,
        sent_ns=np.array(clients.sent_ns, np.int64),
        scheduled_ns=column("scheduled_ns"),
        first_token_ns=np.where(first_token_ns == NEVER, NEVER, first_token_ns + column("first_egress_ns")),
        visible_ns=visible_ns,
        finish_ns=np.array(clients.finish_ns, np.int64),
        emitted_tokens=emitted_tokens,
        preemptions=np.array([0 if s is None else s.preemptions for s in sequences], np.int64),
        cached_tokens=np.array([0 if s is None else s.cached_tokens for s in sequences], np.int64),
        held_back=np.array([s is not None and s.held_back for s in sequences], np.bool_),
        replica=np.array(clients.replica_of, np.int64),
        timeline=cluster.timeline(),
        logs=[replica.log for replica in cluster.replicas],
        busy_ns=np.array([replica.busy_ns for replica in cluster.replicas], np.int64),
        end_ns=cluster.now_ns,
        num_events=sum(replica.num_events for replica in cluster.replicas),
        group=np.array(cluster.group_of, np.int64),
        lifetime_ns=np.column_stack([cluster.started_ns, np.where(stopped_ns == NEVER, cluster.now_ns, stopped_ns)]).reshape(-1, 2),
        gpu_ns=fleet.gpu_ns(cluster.now_ns),
        attempts=attempts,
    )


def _read_logs(requests: RequestTable, replicas: list[Replica]) -> tuple[Int64, Int64]:
    """(tokens emitted, when the first visible token reached the client), each int64[n]."""
    n = len(requests)
    emitted, visible_ns = np.zeros(n, np.int64), np.full(n, NEVER, np.int64)
    for replica in replicas:
        log = replica.log
        row, token, _, _ = log.segments.T
        last_token = log.last_tokens
        np.maximum.at(emitted, row, last_token)
        wanted = requests.visible_token[row]
        within = np.flatnonzero((token <= wanted) & (wanted <= last_token))
        visible_ns[row[within]] = log.delivered_ns(log.steps_of(within, wanted[within]), replica.overheads)
    return emitted, visible_ns
