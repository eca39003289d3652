"""From a spec and a seed to the requests of one run."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from simulator.errors import NothingFitsError, UserError
from simulator.request import RequestTable
from simulator.workload.arrivals import MOST_REQUESTS, arrivals_s, describe_arrivals
from simulator.workload.base import NS_PER_S, Float64
from simulator.workload.clients import ClientsSpec, merged, requests_table
from simulator.workload.lengths import Lengths, MixtureLengths, Scores
from simulator.workload.sessions import Sessions, SessionsSpec, sessions
from simulator.workload.shared import of_samples, with_heads
from simulator.workload.spec import BarrierSpec, ClosedSpec, OpenSpec, ReplaySpec, WorkloadSpec
from simulator.workload.traces import read_trace


@dataclass(frozen=True)
class OpenLoop:
    """Requests are sent at their `arrival_ns`."""


@dataclass(frozen=True)
class ClosedLoop:
    """Each of `num_clients` clients sends the next row `think_s` after its last answer has ended."""

    num_clients: int
    think_s: float = 0.0


@dataclass(frozen=True)
class Barrier:
    """The next `batch_size` rows are sent when the last request of the batch before has ended."""

    batch_size: int


@dataclass(frozen=True)
class Workload:
    """The requests of one run, and what makes their clients send them."""

    requests: RequestTable
    loop: OpenLoop | ClosedLoop | Barrier | Sessions = OpenLoop()
    rejected: int = 0
    """Requests turned away because their prompt has `max_model_len` tokens or more; they are not in `requests`."""
    description: str = ""
    """One line: rate, CV, lengths and their tier, what was generated."""

    @property
    def mean_output_tokens(self) -> float:
        return float(self.requests.output_tokens.mean())


def generate(
    spec: WorkloadSpec, seed: int, *, max_model_len: int, duration_s: float | None = None, num_requests: int | None = None
) -> Workload:
    """The requests of `duration_s` seconds, or the first `num_requests`, or whichever ends first; a trace may have neither.

    Arrivals and each kind of length have a random stream of their own: at another rate the i-th request is as long, and a
    shorter run is the beginning of a longer one. An output stops where prompt and output reach `max_model_len`; prompts of
    that length are rejected, as vLLM 0.26 does (`v1/engine/input_processor.py`), and counted; they keep their request_id.

    Raises:
        UserError: the run has no end or no request, or a trace cannot be read.
    """
    if duration_s is not None and not 0 < duration_s < np.inf:
        raise UserError(f"duration_s must be positive and finite, not {duration_s:g}")
    if num_requests is not None and num_requests < 1:
        raise UserError(f"num_requests must be at least 1, not {num_requests}")
    if isinstance(spec, ClosedSpec | BarrierSpec):
        table = _waiting(spec.lengths, seed, num_requests)
        if isinstance(spec, ClosedSpec):
            table = with_heads(table, spec.shared_prompts, seed)
    elif isinstance(spec, SessionsSpec):
        table, loop, rejected = sessions(spec, seed, max_model_len, duration_s, num_requests)
        return Workload(table, loop, rejected, f"{spec.describe()}; {_summary(table, rejected)}")
    elif isinstance(spec, ReplaySpec):
        return _replayed(spec, seed, duration_s, num_requests, max_model_len)
    elif isinstance(spec, ClientsSpec):
        table = merged(spec, seed, duration_s=duration_s, num_requests=num_requests)
    else:
        table = _open(spec, seed, duration_s, num_requests)
    return _served(table, _loop(spec), _describe(spec), max_model_len)


def _open(spec: OpenSpec, seed: int, duration_s: float | None, num_requests: int | None) -> RequestTable:
    samples = spec.samples_per_prompt
    num_prompts = None if num_requests is None else -(-num_requests // samples)
    times_s = np.repeat(arrivals_s(spec.arrivals, seed, duration_s=duration_s, num_requests=num_prompts), samples)
    scores = of_samples(Scores.draw(len(times_s), seed), samples, seed)
    table = _drawn(times_s, spec.lengths, scores, spec.priority)
    return with_heads(table, spec.shared_prompts, seed, samples).take(slice(num_requests))


def _loop(spec: WorkloadSpec) -> OpenLoop | ClosedLoop | Barrier:
    if isinstance(spec, ClosedSpec):
        return ClosedLoop(spec.num_clients, spec.think_s)
    return Barrier(spec.batch_size) if isinstance(spec, BarrierSpec) else OpenLoop()


def _describe(spec: OpenSpec | ClosedSpec | BarrierSpec | ClientsSpec) -> str:
    if isinstance(spec, ClientsSpec):
        return spec.describe()
    if isinstance(spec, OpenSpec):
        who = describe_arrivals(spec.arrivals)
        if spec.samples_per_prompt > 1:
            who += f", {spec.samples_per_prompt} samples of each prompt"
    elif isinstance(spec, ClosedSpec):
        who = f"closed loop of {spec.num_clients} clients, think time {spec.think_s:g} s"
    else:
        who = f"batches of {spec.batch_size} behind a barrier"
    shared = None if isinstance(spec, BarrierSpec) else spec.shared_prompts
    return f"{who}; {'' if shared is None else f'{shared.describe()}; '}{spec.lengths.describe()}"


def _served(table: RequestTable, loop: OpenLoop | ClosedLoop | Barrier, about: str, max_model_len: int) -> Workload:
    if len(table) == 0:
        raise UserError("workload: no request arrives within duration_s")
    requests = _within(table, max_model_len)
    rejected = len(table) - len(requests)
    return Workload(requests, loop, rejected, f"{about}; {_summary(requests, rejected)}")


def _waiting(lengths: Lengths, seed: int, num_requests: int | None) -> RequestTable:
    """Requests of clients that wait for answers: all there at the start, none with an arrival of its own."""
    if num_requests is None:
        raise UserError("workload: num_requests is needed where clients wait for answers (closed, barrier)")
    if num_requests > MOST_REQUESTS:
        raise UserError(f"workload: {num_requests:.3g} requests are asked for; at most {MOST_REQUESTS:,} fit into a run")
    return _drawn(np.zeros(num_requests), lengths, Scores.draw(num_requests, seed), priority=0)


def _drawn(times_s: Float64, lengths: Lengths, scores: Scores, priority: int) -> RequestTable:
    """Requests sent at these times. The data sets of a mixture are told apart as clients."""
    table = requests_table(times_s, lengths.sample(scores), priority=priority)
    if not isinstance(lengths, MixtureLengths):
        return table
    part, priorities = lengths.chosen(scores), np.array([part.priority for part in lengths.parts.values()])
    return replace(table, client=part, client_names=tuple(lengths.parts), priority=table.priority + priorities[part])


def _replayed(spec: ReplaySpec, seed: int, duration_s: float | None, num_requests: int | None, max_model_len: int) -> Workload:
    trace = read_trace(spec.path, spec.format)
    table = trace.requests
    arrival_ns = np.rint(table.arrival_ns * spec.time_scale).astype(np.int64)
    visible = table.visible_token
    if spec.thinking is not None:
        shares = spec.thinking.share(Scores.draw(len(table), seed).thinking)
        visible = np.floor(shares * table.output_tokens).astype(np.int64) + 1
    # No limit is recorded: the only one is the context, so that an output that fits ends by EOS.
    limits = np.maximum(table.output_tokens, max_model_len)
    priority = np.full(len(table), spec.priority, np.int64)
    table = replace(table, arrival_ns=arrival_ns, visible_token=visible, max_tokens=limits, priority=priority)
    if duration_s is not None:
        table = table.take(table.arrival_ns < duration_s * NS_PER_S)
    table = table.take(slice(num_requests))
    about = f"replay of {trace.name}{_burstiness(table)}"
    if spec.time_scale != 1:
        about += f", times × {spec.time_scale:g}"
    if trace.dropped:
        about += f", {trace.dropped:,} failed requests left out"
    return _served(table, OpenLoop(), about, max_model_len)


def _burstiness(table: RequestTable) -> str:
    gaps = np.diff(table.arrival_ns) / NS_PER_S
    return f" at {1 / gaps.mean():.3g} requests/s (CV {gaps.std() / gaps.mean():.2f})" if gaps.any() else ""


def _within(table: RequestTable, max_model_len: int) -> RequestTable:
    served = table.take(table.prompt_tokens < max_model_len)
    if len(served) == 0:
        shortest = table.prompt_tokens.min()
        raise NothingFitsError(f"workload: every prompt has max_model_len {max_model_len} tokens or more; the shortest {shortest}")
    limits = np.minimum(served.max_tokens, max_model_len - served.prompt_tokens)
    return replace(served, max_tokens=limits, output_tokens=np.minimum(served.output_tokens, limits))


def _summary(requests: RequestTable, rejected: int) -> str:
    return (
        f"{len(requests):,} requests of {requests.prompt_tokens.mean():,.0f} prompt and {requests.output_tokens.mean():,.0f} output tokens"
        f" on average, {requests.truncated.mean():.1%} truncated, {rejected:,} rejected"
    )
