"""Step records: the composition of every engine step as `StepFeatures` columns, beside the time that it took."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, islice

import numpy as np
from numpy.typing import NDArray

from profiler.trace import Trace
from simulator.engine import EngineConfig
from simulator.errors import UserError
from simulator.features import StepFeatures

Int64 = NDArray[np.int64]

RECORDED = ("prefill_seqs", "prefill_tokens", "prefill_context_tokens", "decode_seqs", "decode_context_tokens")
"""Features that every trace records; the others follow from the requests, whether recorded too or not."""

OVERTAKING = 6
"""Requests that reach the engine in another order than their clients sent them lie at most this many places apart."""

TRIED = 20_000
"""Combinations looked at before a step is called contradictory."""


@dataclass(frozen=True, eq=False)
class Steps:
    """k measured steps. Steps of one `run` followed one another without the engine being idle between them."""

    features: StepFeatures
    """Columns int64[k]."""
    duration_ns: Int64
    """int64[k]: the gap between successive results."""
    end_s: NDArray[np.float64]
    """float64[k]: when the result arrived."""
    run: Int64
    """int64[k], does not decrease."""

    def __len__(self) -> int:
        return len(self.duration_ns)

    @property
    def matrix(self) -> Int64:
        """int64[k, number of features]: what scikit-learn calls X."""
        return as_matrix(self.features)

    def take(self, keep: NDArray[np.bool_]) -> Steps:
        """The steps where `keep`, bool[k], holds; where steps are left out between two others, a new run begins."""
        new_run = np.diff(self.run, prepend=self.run[:1]) != 0
        left_out = np.diff(np.flatnonzero(keep), prepend=-1) > 1
        run = np.cumsum(new_run)[keep] + np.cumsum(left_out)
        columns = StepFeatures(*(column[keep] for column in self.features))
        return Steps(columns, self.duration_ns[keep], self.end_s[keep], run)


@dataclass(frozen=True, eq=False)
class Replay:
    """What the requests of a trace say about its steps (all steps, idle gaps included)."""

    features: StepFeatures
    first_token_step: Int64
    """int64[n]: the step whose result brought a request's first token; requests in the order of arrival."""
    after_idle: NDArray[np.bool_]
    """bool[k]: the engine was empty before this step, so its duration is not known."""


def replay(trace: Trace) -> Replay:
    """Recovers which request was in which step, and from it the features that the trace does not record.

    A request's prompt is computed in the order of arrival; then its context grows by one token a step until its output is
    complete (vLLM 0.26 `v1/core/sched/scheduler.py`: running requests before waiting ones, none skipped).

    Raises:
        UserError: the recorded steps contradict this: preemption, prefix caching, speculation, or a broken trace.
    """
    for unfit, what in ((trace.meta.prefix_caching, "prefix caching"), (trace.meta.speculative, "speculation")):
        if unfit:
            raise UserError(f"trace {trace.meta.name}: recorded with {what}; a fit needs a trace without it")
    if trace.steps["preempted"].any():
        raise UserError(f"trace {trace.meta.name}: has preemptions, so contexts are not known; a fit needs a trace without them")
    first_token_step, attention_tokens = _prefills(trace)
    longest = _longest_contexts(trace, first_token_step)
    column = {name: trace.steps[name].to_numpy(np.int64) for name in RECORDED}
    padded, mode = pad(trace.meta.engine_config(), column["prefill_tokens"] + column["decode_seqs"], column["prefill_seqs"] == 0)
    features = StepFeatures(
        **column,
        prefill_attention_tokens=attention_tokens,
        decode_context_max_tokens=longest,
        verify_tokens=np.zeros(len(longest), np.int64),
        padded_tokens=padded,
        graph_mode=mode,
        decode_idle_tokens=np.zeros(len(longest), np.int64),
        decode_in_step_seqs=np.zeros(len(longest), np.int64),
    )
    # With steps in flight, the next one was composed before the last result; a step composed after it found the engine empty
    # unless it decodes, as the first of a synchronous engine's steps does not.
    late = trace.steps["schedule_s"].to_numpy()[1:] > trace.steps["update_s"].to_numpy()[:-1]
    after_idle = np.concatenate([[True], late & (column["decode_seqs"][1:] == 0)])
    return Replay(features, first_token_step, after_idle)


def busy_steps(trace: Trace, replayed: Replay) -> Steps:
    """The steps whose duration is known: all but those that ended an idle time."""
    update_s = trace.steps["update_s"].to_numpy(np.float64)
    update_ns: Int64 = np.rint(update_s * 1e9).astype(np.int64)
    gap_ns: Int64 = np.diff(update_ns, prepend=np.int64(0))
    run: Int64 = np.cumsum(replayed.after_idle, dtype=np.int64)
    known = ~replayed.after_idle
    columns = StepFeatures(*(column[known] for column in replayed.features))
    return Steps(columns, gap_ns[known], update_s[known], run[known])


def as_matrix(features: StepFeatures) -> Int64:
    """int64[k, number of features]: the columns side by side; what is a number is the same in all steps."""
    return np.column_stack(np.broadcast_arrays(*features)).astype(np.int64)


def pad(engine: EngineConfig, tokens: Int64, uniform_decode: NDArray[np.bool_]) -> tuple[Int64, Int64]:
    """(tokens after CUDA-graph padding, graph mode) of k batches, int64[k] each."""
    pairs = [engine.graphs.pad(int(t), bool(u)) for t, u in zip(tokens, uniform_decode, strict=True)]
    return np.array([padded for padded, _ in pairs], np.int64), np.array([int(mode) for _, mode in pairs], np.int64)


def _prefills(trace: Trace) -> tuple[Int64, Int64]:
    """(step that completes each request's prompt, pairs that attention computes in each step)."""
    prompts = trace.requests["prompt_tokens"].to_numpy(np.int64)
    seqs, tokens = (trace.steps[name].to_numpy(np.int64) for name in ("prefill_seqs", "prefill_tokens"))
    waiting = list(range(len(prompts)))
    computed = np.zeros(len(prompts), np.int64)
    done_in, attention = np.full(len(prompts), -1), np.zeros(len(seqs), np.int64)
    for step in map(int, np.flatnonzero(seqs)):
        num_seqs, num_tokens = int(seqs[step]), int(tokens[step])
        for request in _in_batch(waiting, prompts - computed, num_seqs, num_tokens, _at(trace, step)):
            chunk = min(num_tokens, int(prompts[request] - computed[request]))
            computed[request] += chunk
            num_tokens -= chunk
            attention[step] += chunk * computed[request] - chunk * (chunk - 1) // 2
            if computed[request] == prompts[request]:
                waiting.remove(request)
                done_in[request] = step
    if waiting:
        raise UserError(f"trace {trace.meta.name}: {len(waiting)} of {len(prompts)} requests have no prefill step; the trace is cut off")
    return done_in, attention


def _in_batch(waiting: list[int], remaining: Int64, num_seqs: int, num_tokens: int, at: str) -> list[int]:
    """The requests whose prompts fill the step: those next in line, if need be in the order in which they overtook."""
    head = waiting[:num_seqs]
    if len(head) == num_seqs:
        *whole, last = (int(remaining[request]) for request in head)
        if 0 < num_tokens - sum(whole) <= last:
            # The last prompt of a batch may be cut, but a batch that holds other prompts whole is the better explanation.
            exact = num_tokens - sum(whole) == last
            swapped = None if exact else _whole_prompts(waiting, remaining, num_seqs, num_tokens)
            return swapped or head
    found = _whole_prompts(waiting, remaining, num_seqs, num_tokens)
    if found is None:
        raise UserError(f"{at}: no {num_seqs} of the next requests have prompts of {num_tokens} tokens together")
    return found


def _whole_prompts(waiting: list[int], remaining: Int64, num_seqs: int, num_tokens: int) -> list[int] | None:
    for chosen in islice(combinations(waiting[: num_seqs + OVERTAKING], num_seqs), TRIED):
        if remaining[list(chosen)].sum() == num_tokens:
            return list(chosen)
    return None


def _longest_contexts(trace: Trace, first_token_step: Int64) -> Int64:
    """int64[k]: the longest context that decodes in each step; checks the count and the sum that the trace records."""
    k = len(trace.steps)
    longest, total, seqs = np.zeros(k, np.int64), np.zeros(k, np.int64), np.zeros(k, np.int64)
    prompts, outputs = (trace.requests[name].to_numpy(np.int64) for name in ("prompt_tokens", "output_tokens"))
    for first, prompt, output in zip(first_token_step, prompts, outputs, strict=True):
        decodes = slice(first + 1, min(first + output, k))
        context = prompt + np.arange(1, decodes.stop - decodes.start + 1)
        longest[decodes] = np.maximum(longest[decodes], context)
        total[decodes] += context
        seqs[decodes] += 1
    for name, rebuilt in (("decode_seqs", seqs), ("decode_context_tokens", total)):
        recorded = trace.steps[name].to_numpy(np.int64)
        if (recorded != rebuilt).any():
            step = int((recorded != rebuilt).argmax())
            raise UserError(f"{_at(trace, step)}: {name} is {recorded[step]}, but the requests give {rebuilt[step]}")
    return longest


def _at(trace: Trace, step: int) -> str:
    return f"trace {trace.meta.name}: steps.csv.gz row {step}"
