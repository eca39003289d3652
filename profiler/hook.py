"""vLLM's scheduler, with a record of every step. Runs in the engine-core process.

It has to be `AsyncScheduler` that is subclassed: with a subclass of plain `Scheduler` vLLM runs, and one measures, synchronous mode.
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

import numpy as np
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.core import EngineCore

from profiler.start import RECORD_TO
from profiler.stop import leave_process_group

STEP_COLUMNS = (
    "schedule_s", "update_s", "prefill_seqs", "prefill_tokens", "prefill_context_tokens", "decode_seqs", "decode_tokens",
    "decode_context_tokens", "kv_usage", "running", "waiting", "preempted", "decode_context_max_tokens", "prefill_attention_tokens",
    "verify_tokens", "emitted_tokens", "schedule_cpu_s", "update_cpu_s", "accepted_seqs",
)  # fmt: skip


class Step:
    """One step: what was in it, and when the scheduler touched it (seconds of `perf_counter`)."""

    __slots__ = ("accepted_seqs", "emitted_tokens", "output", "schedule_s", "scheduled_s", "state", "update_s", "updated_s")

    def __init__(self, output: Any, schedule_s: float, scheduled_s: float, state: dict[str, float]) -> None:
        self.output = output
        self.schedule_s, self.scheduled_s = schedule_s, scheduled_s
        self.update_s = self.updated_s = float("nan")
        self.emitted_tokens = 0
        self.accepted_seqs: list[int] = []
        """Of the sequences with drafts, those whose first 1, 2, … drafts were accepted, before these by how many had any."""
        self.state = state

    def row(self) -> dict[str, Any]:
        """Columns of the measured-trace format, and this project's own (the scheduler's CPU time)."""
        return {
            "schedule_s": self.schedule_s,
            "update_s": self.update_s,
            "schedule_cpu_s": self.scheduled_s - self.schedule_s,
            "update_cpu_s": self.updated_s - self.update_s,
            "emitted_tokens": self.emitted_tokens,
            "accepted_seqs": " ".join(map(str, self.accepted_seqs)),
            **self.state,
            **composition(self.output),
        }


def composition(output: Any) -> dict[str, int]:
    """What a batch is made of, from vLLM's `SchedulerOutput` alone (`v1/core/sched/output.py`); names as in `StepFeatures`.

    A sequence decodes if it has context and runs one token beside its drafts; all others are chunks of prompt (or of recomputed tokens).
    """
    new, cached = output.scheduled_new_reqs, output.scheduled_cached_reqs
    names = [*(request.req_id for request in new), *cached.req_ids]
    computed = np.array([*(request.num_computed_tokens for request in new), *cached.num_computed_tokens], dtype=np.int64)
    scheduled = np.array([output.num_scheduled_tokens[name] for name in names], dtype=np.int64)
    drafts = np.array([len(output.scheduled_spec_decode_tokens.get(name, ())) for name in names], dtype=np.int64)
    ends = computed + scheduled
    decodes = (scheduled == 1 + drafts) & (computed > 0)
    context = ends[decodes]
    return {
        "prefill_seqs": int((~decodes).sum()),
        "prefill_tokens": int(scheduled[~decodes].sum()),
        "prefill_context_tokens": int(ends[~decodes].sum()),
        "prefill_attention_tokens": int((scheduled * ends)[~decodes].sum()),
        "decode_seqs": int(decodes.sum()),
        "decode_tokens": int(scheduled[decodes].sum()),
        "decode_context_tokens": int(context.sum()),
        "decode_context_max_tokens": int(context.max(initial=0)),
        "verify_tokens": int(drafts[decodes].sum()),
    }


def accepted_seqs(output: Any, results: Any, num_spec_tokens: int) -> list[int]:
    """Sequences that verified drafts in the step, and of these those whose first 1, 2, … were accepted; empty without drafts.

    As the worker answered (`ModelRunnerOutput.sampled_token_ids`), before vLLM's scheduler cuts that where an output ends.
    """
    drafts = output.scheduled_spec_decode_tokens
    if not drafts:
        return []
    accepted = [len(results.sampled_token_ids[results.req_id_to_index[name]]) - 1 for name in drafts]
    return [sum(of_one >= first for of_one in accepted) for first in range(num_spec_tokens + 1)]


class _Recorder:
    """Mixed into vLLM's schedulers: keeps finished steps in `steps`, or writes them to files as they finish."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps: list[Step] = []
        self._in_flight: deque[Step] = deque()
        self._preempted: list[str] = []
        folder = os.environ.get(RECORD_TO)
        self._files = _Files(Path(folder)) if folder else None
        if self._files:
            leave_process_group()
            _note_queued(self._files.queued_s)

    def add_request(self: Any, request: Any) -> None:
        if self._files:
            self._files.added_s[request.request_id] = perf_counter()
        super().add_request(request)  # type: ignore[misc]  # vLLM's scheduler stands behind this mixin

    def schedule(self: Any, *args: Any, **kwargs: Any) -> Any:
        begin_s = perf_counter()
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]  # vLLM's scheduler stands behind this mixin
        end_s = perf_counter()
        # A call that schedules nothing is no step, but may preempt: that counts with the next step.
        self._preempted.extend(output.preempted_req_ids or ())
        if self._files:
            for new in output.scheduled_new_reqs:
                # With model runner V2 a resumed request is new, too: what counts is when it is scheduled first.
                self._files.cached_tokens.setdefault(new.req_id, new.num_computed_tokens)
        if output.total_num_scheduled_tokens:
            state = {
                "kv_usage": self.kv_cache_manager.usage,
                "running": len(self.running),
                "waiting": len(self.waiting),
                "preempted": len(self._preempted),
            }
            if self._files:
                self._files.note_preempted(self._preempted, begin_s)
            self._preempted.clear()
            self._in_flight.append(Step(output, begin_s, end_s, state))
        return output

    def update_from_output(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        accepted = accepted_seqs(scheduler_output, model_runner_output, self.num_spec_tokens)
        begin_s = perf_counter()
        outputs = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]  # vLLM's scheduler stands behind this mixin
        if scheduler_output.total_num_scheduled_tokens:
            step = self._in_flight.popleft()
            step.update_s, step.updated_s = begin_s, perf_counter()
            emitted = [output for batch in outputs.values() for output in batch.outputs]
            step.emitted_tokens = sum(len(output.new_token_ids) for output in emitted)
            step.accepted_seqs = accepted
            if self._files:
                self._files.write(step, (output.request_id for output in emitted if output.finish_reason is not None))
            else:
                self.steps.append(step)
        return outputs

    def finish_requests(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Requests that end from outside: their client aborts them."""
        aborted = super().finish_requests(*args, **kwargs)  # type: ignore[misc]  # vLLM's scheduler stands behind this mixin
        if self._files:
            self._files.write_requests((request.request_id for request in aborted), float("nan"))
        return aborted


class _Files:
    """`steps.csv` and `engine_requests.csv`, flushed at every line: the process may be killed at any time."""

    def __init__(self, folder: Path) -> None:
        self.queued_s: dict[str, float] = {}
        self.added_s: dict[str, float] = {}
        self.preempted_s: dict[str, list[float]] = defaultdict(list)
        self.cached_tokens: dict[str, int] = {}
        self.steps = self._open(folder / "steps.csv", STEP_COLUMNS)
        self.requests = self._open(
            folder / "engine_requests.csv", ("request_id", "queued_s", "added_s", "finished_s", "preempted_s", "cached_tokens")
        )

    @staticmethod
    def _open(path: Path, columns: Iterable[str]) -> TextIO:
        file = path.open("w", buffering=1)
        file.write(",".join(columns) + "\n")
        return file

    def write(self, step: Step, finished: Iterable[str]) -> None:
        row = step.row()
        self.steps.write(",".join(str(row[column]) for column in STEP_COLUMNS) + "\n")
        self.write_requests(finished, step.updated_s)

    def note_preempted(self, names: Iterable[str], schedule_s: float) -> None:
        """When, not only how often: of a request that outlives a trace, what comes later is not the trace's."""
        for name in names:
            self.preempted_s[name].append(schedule_s)

    def write_requests(self, names: Iterable[str], finished_s: float) -> None:
        """Requests that are over; `finished_s` is NaN of those that were aborted."""
        for name in names:
            seen_s = (self.queued_s.pop(name), self.added_s.pop(name), finished_s)
            preempted_s = " ".join(map(repr, self.preempted_s.pop(name, ())))
            self.requests.write(",".join((name, *map(repr, seen_s), preempted_s, str(self.cached_tokens.pop(name, 0)))) + "\n")


def _note_queued(queued_s: dict[str, float]) -> None:
    """Notes when a request reaches the engine core's queue; its scheduler gets it between two steps (`v1/engine/core.py`)."""
    preprocess = EngineCore.preprocess_add_request

    def noted(core: Any, request: Any) -> Any:
        ready = preprocess(core, request)
        queued_s[request.request_id] = perf_counter()
        return ready

    EngineCore.preprocess_add_request = noted


class RecordingScheduler(_Recorder, Scheduler):  # type: ignore[misc]  # vLLM ships no types
    """Synchronous scheduling, recorded."""


class RecordingAsyncScheduler(_Recorder, AsyncScheduler):  # type: ignore[misc]  # as above
    """Asynchronous scheduling, recorded."""
