"""`plan(config)`: the smallest number of GPUs that keeps the SLOs in steady state, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from simulator.artifacts.accuracy import accuracy_text, refusal
from simulator.errors import InvariantError, NothingFitsError, UserError
from simulator.planning.candidate import Candidate
from simulator.planning.pool import Pool
from simulator.planning.search import Search
from simulator.planning.sizing import FILLED, MOST_LIFETIMES, NS_PER_S, Demand
from simulator.planning.steady import Period, still_off
from simulator.planning.trial import Question, Trial, run_trial
from simulator.reporting.wording import check_text, duration
from simulator.workload import OpenSpec
from simulator.workload.arrivals import Ar1, Hourly, Preset
from simulator.workload.clients import ClientsSpec

if TYPE_CHECKING:
    from simulator.config import Config

SAMPLE_REQUESTS = 40_000
"""Requests from which the load is estimated before anything is simulated."""
MEASURED_REQUESTS = 10_000
"""Measured over all runs of a candidate, unless requests stay so long that more are needed: 100 lie beyond a 99th percentile."""
WARMUP = 1 / 3
"""Of the time that an empty service takes to fill: a run begins with nearly its load, and forgets what was wrong with it."""
STILL_OFF = 0.03
"""A warm-up was too short if the start's error was still more than this share of the load at its end."""
LONGEST_LIFETIMES = 10
"""How long a replay goes on after the last arrival, in lifetimes of its longest request, if requests are still unfinished."""
LONGEST_PERIODS = 3
"""Times that the warm-up is made longer."""
SWINGS = 5
"""A run should see so many swings of the rate."""
HOURS_A_DAY = 24
PREFILL_SHARES = (0.125, 0.25, 0.5)
"""Tried where a disaggregated service's is not given."""
SURELY = 1.25
"""Sizes that by the estimate are short of what the load needs by this factor are not simulated."""


@dataclass(frozen=True, eq=False)
class Plan:
    """The answer and its evidence."""

    question: Question
    demand: Demand | None
    """None: no request fits into the engine."""
    period: Period | None
    """Of every run; None: nothing was simulated."""
    candidates: dict[int, Candidate]
    """By number of replicas, in order; all were given all runs."""
    num_replicas: int | None
    """The answer; None: infeasible."""
    reason: str = ""
    """Why it is infeasible."""
    simulated_s: float = 0.0
    """All runs together, those of sizes that were only probed included."""
    simulated_requests: int = 0
    settled: bool = True
    """Whether the warm-up was long enough."""
    rising: tuple[int, ...] = ()
    """Sizes that fail surely although they began with too little: a longer warm-up would only make their latencies longer."""
    traffic: str = ""
    """What was served, in a line."""
    caveats: tuple[str, ...] = ()
    """What the reader must know about the traffic."""
    accuracy: str = ""
    """What is published about the accuracy of the model's optimization; empty for the plain model."""

    @property
    def gpus(self) -> int | None:
        """GPUs of the answer."""
        return None if self.num_replicas is None else self.num_replicas * self.question.gpus_per_replica

    @property
    def chosen(self) -> Candidate | None:
        """The answer's evidence."""
        return None if self.num_replicas is None else self.candidates[self.num_replicas]

    @property
    def interval(self) -> tuple[int, int | None] | None:
        """GPUs between which the answer lies with the question's confidence; None: one run tells no interval.

        The smallest size that suffices is at most n exactly if n suffices: so the interval's ends are the sizes at which the chance to
        suffice passes (1 ∓ confidence) / 2. An upper end of None lies beyond the sizes tried.
        """
        if self.num_replicas is None or len(self.candidates[self.num_replicas].trials) == 1:
            return None
        low, high = (1 - self.question.confidence) / 2, (1 + self.question.confidence) / 2
        sizes, gpus = list(self.candidates.values()), self.question.gpus_per_replica
        lowest = next(c.num_replicas for c in sizes if c.chance > low or c.num_replicas == self.num_replicas)
        highest = next((c.num_replicas for c in sizes if c.num_replicas >= self.num_replicas and c.chance >= high), None)
        return lowest * gpus, None if highest is None else highest * gpus


def plan(config: Config) -> Plan:
    """Answers the question of a configuration.

    Raises:
        UserError: it makes no sense, or the optimization loses more accuracy than is allowed. That no number of GPUs will do is an
            answer, not an error.
    """
    if reason := refusal(config):
        raise UserError(f"opt: {reason}")
    question = Question.of(config)
    if question.disaggregation is None or question.disaggregation.prefill_share is not None:
        found = answer(question, config.plan.workers)
    else:
        found = best_split(question, config.plan.workers)
    return replace(found, accuracy=accuracy_text(config))


def best_split(question: Question, workers: int | None = None) -> Plan:
    """The answer with the share of prefill replicas that needs the fewest GPUs; of several, the one with the most headroom."""
    assert question.disaggregation is not None
    plans = []
    for share in PREFILL_SHARES:
        split = question.disaggregation.model_copy(update={"prefill_share": share})
        plans.append(answer(replace(question, disaggregation=split), workers))
    needed = {share: one.gpus for share, one in zip(PREFILL_SHARES, plans, strict=True)}
    tried = ", ".join(f"{gpus or 'no'} GPUs with a share of {share:g}" for share, gpus in needed.items())
    best = min(plans, key=lambda one: (one.gpus or inf, -(one.chosen.binding.headroom if one.chosen else 0.0)))
    return replace(best, caveats=(*best.caveats, f"prefill replicas tried: {tried}"))


def answer(question: Question, workers: int | None = None) -> Plan:
    """Answers a question. The same whatever the number of `workers` (processes; None: one a core)."""
    try:
        demand, about = demand_of(question)
    except NothingFitsError as error:
        return Plan(question, None, None, {}, None, str(error).removeprefix("workload: "))
    reason = _impossible(question, demand)
    if reason:
        return Plan(question, demand, None, {}, None, reason, traffic=about)
    period, simulated_s, simulated_requests = period_of(question, demand), 0.0, 0
    for attempt in range(LONGEST_PERIODS):
        with Pool(partial(_run, question, demand, period), workers, "simulating") as pool:
            search = Search(question, demand, pool)
            num_replicas = search.run()
        simulated_s += search.simulated_s
        simulated_requests += search.simulated_requests
        judged = search.candidates[num_replicas or question.max_replicas]
        unsettled = [candidate for candidate in search.candidates.values() if not _settled(question, demand, period, candidate)]
        rising = [candidate.num_replicas for candidate in unsettled if _fails_anyway(question, candidate)]
        settled = len(rising) == len(unsettled)
        if settled or attempt == LONGEST_PERIODS - 1:
            reason = "" if num_replicas else _too_few(question, judged)
            sizes = dict(sorted(search.candidates.items()))
            return Plan(
                question,
                demand,
                period,
                sizes,
                num_replicas,
                reason,
                simulated_s,
                simulated_requests,
                settled,
                tuple(rising),
                about,
                _caveats(question, period),
            )
        period = replace(period, warmup_s=2 * period.warmup_s, cooldown_s=2 * period.cooldown_s)
    raise InvariantError("the last period was not taken")


def _run(question: Question, demand: Demand, period: Period, task: tuple[int, int]) -> Trial:
    return run_trial(question, demand, period, *task)


def demand_of(question: Question) -> tuple[Demand, str]:
    """(the traffic as the estimate sees it, a line about it)."""
    workload = question.traffic(question.seed, num_requests=None if question.replays else SAMPLE_REQUESTS)
    arrival_ns = workload.requests.arrival_ns
    if isinstance(question.workload, OpenSpec | ClientsSpec):
        rate = question.workload.rate
    else:
        rate = (len(arrival_ns) - 1) / max(float(arrival_ns[-1] - arrival_ns[0]) / NS_PER_S, 1 / NS_PER_S)
    per_step = 1.0 if question.acceptance is None else question.acceptance.tokens_per_step
    demand = Demand(workload.requests, rate, question.engine, question.cost, per_step)
    beside = sum(
        group.num_replicas * Demand(workload.requests, rate, group.engine, group.cost).most_tokens_per_s / demand.most_tokens_per_s
        for group in question.others
    )
    return replace(demand, beside=beside), workload.description.rpartition("; ")[0]


def _impossible(question: Question, demand: Demand) -> str:
    """Why no number of GPUs up to `max_gpus` will do, where that is known without simulating; empty otherwise."""
    broken = demand.broken_alone(question.slos)
    if broken:
        return "even alone on an idle engine, " + ", ".join(broken)
    if question.max_replicas < 1:
        return f"a replica needs {question.gpus_per_replica} GPUs and plan.max_gpus is {question.max_gpus}"
    fewest = demand.fewest(question.max_replicas * 8)
    if fewest > SURELY * question.max_replicas:
        gpus = fewest * question.gpus_per_replica
        return (
            f"{demand.output_tokens_per_s:,.0f} output tokens/s need about {gpus} GPUs even with full batches,"
            f" and plan.max_gpus is {question.max_gpus}"
        )
    return ""


def _too_few(question: Question, judged: Candidate) -> str:
    """Why the largest size that may be had does not do."""
    gpus = judged.num_replicas * question.gpus_per_replica
    if judged.unstable:
        return f"with {gpus} GPUs (plan.max_gpus) requests still come faster than they are answered"
    return f"with {gpus} GPUs (plan.max_gpus) {check_text(judged.binding)}"


def period_of(question: Question, demand: Demand) -> Period:
    """What every run is made of."""
    size = demand.guess(question.slos, question.max_replicas)
    # One replica fewer is judged, too, and takes longer for everything; if it can carry the load at all.
    size = size - 1 if size > 1 and demand.step_of(size - 1) is not None else size
    lifetimes_s = demand.latencies(demand.usual_step_s(size))["e2e"].values_s
    warmup_s = demand.filling_s(size) or MOST_LIFETIMES * float(lifetimes_s.mean())
    if question.replays:
        last_s = float(demand.requests.arrival_ns[-1]) / NS_PER_S
        warmup_s = min(warmup_s, last_s / 2)
        return Period(warmup_s, last_s + 1 / NS_PER_S - warmup_s, LONGEST_LIFETIMES * float(lifetimes_s.max()))
    measured_s = question.measured_s or MEASURED_REQUESTS / question.num_seeds / demand.rate
    return Period.of(lifetimes_s, WARMUP * warmup_s, measured_s, demand.longest_s)


def _caveats(question: Question, period: Period) -> tuple[str, ...]:
    """Swings of the traffic that are slower than what a run measures."""
    spec = question.workload
    arrivals = (
        [spec.arrivals]
        if isinstance(spec, OpenSpec)
        else [c.arrivals for c in spec.clients.values()]
        if isinstance(spec, ClientsSpec)
        else []
    )
    found = []
    for one in arrivals:
        modulation = (one.resolve() if isinstance(one, Preset) else one).modulation
        if isinstance(modulation, Hourly) and period.end_s < HOURS_A_DAY * modulation.step_s:
            found.append(
                f"the rate follows the hours of a day, and a run sees {duration(period.end_s)} from hour {modulation.start_hour} on"
            )
        elif isinstance(modulation, Ar1) and period.measured_s < SWINGS * modulation.step_s / (1 - modulation.ar1):
            swing = duration(modulation.step_s / (1 - modulation.ar1))
            found.append(
                f"the rate swings over {swing}, and a run measures {duration(period.measured_s)}: give plan.hours to see more of it"
            )
    return tuple(dict.fromkeys(found))


def _settled(question: Question, demand: Demand, period: Period, candidate: Candidate) -> bool:
    """Whether the warm-up was long enough for this size; one without a steady state, and a replay, need none."""
    if question.replays or candidate.unstable:
        return True
    filling_s = demand.filling_s(candidate.num_replicas) or period.warmup_s / WARMUP
    # What is left of an error falls exponentially, and to 1 − FILLED in the time that an empty service takes to fill.
    left = (1 - FILLED) ** (period.warmup_s / filling_s) if filling_s > 0 else 0.0
    return still_off(*_loads(candidate), 1 - left) <= STILL_OFF


def _fails_anyway(question: Question, candidate: Candidate) -> bool:
    """Whether it surely does not suffice, and began with less than its load."""
    started, levels = _loads(candidate)
    return candidate.chance < (1 - question.confidence) / 2 and sum(started) < sum(levels)


def _loads(candidate: Candidate) -> tuple[list[float], list[float]]:
    """Of each run: requests under way at its start, and in the system on average while it is measured."""
    return [float(trial.started) for trial in candidate.trials], [float(trial.in_system.mean()) for trial in candidate.trials]
