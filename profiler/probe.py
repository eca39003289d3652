"""Clocks inside vLLM's worker: when a step is launched by the CPU, and how long the GPU works on it.

vLLM adds this class to its worker (`worker_extension_cls`), in whatever process that runs, and calls it by name (`collective_rpc`).

The GPU's time of a step is read by events on its stream. An event before the step fires when the stream reaches it, so behind a queue
of earlier work, as in a saturated engine, start to end is the step alone. A step that launches slower than the GPU runs it (piecewise
graphs, none, small batches) would be measured with gaps. Such steps are measured a second time behind a *hold*: a kernel that keeps the
stream busy until the launch is over.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

from profiler.eagle import keep_own_lm_head
from profiler.host import host_speed
from profiler.logits import peaked_logits
from profiler.stop import leave_process_group

keep_own_lm_head()  # vLLM imports this module in each of its workers before it loads a model there

_HOLD_CYCLES = 100_000_000
_GIVEN_ROWS = 128
"""Rows of prepared logits; larger batches get them several times."""
_FILLED_ROWS = 1024
_LARGEST_SIGMAS = 5.0
"""Standard deviations from zero of the largest of a matrix of normal weights, to which its scale is fitted."""


class _Timed:
    """One step in the worker.

    `marks` are events on the GPU's stream, or readings of the CPU's clock where there is none: begin, forward pass done, logits there,
    prepared logits put in their place, end.
    """

    __slots__ = ("drafting", "entered_s", "given_s", "graph_mode", "hold_s", "launch_s", "marks", "padded_tokens", "queued", "returned_s")

    def __init__(self, hold_s: float) -> None:
        self.hold_s = hold_s
        self.marks: list[Any] = []
        self.drafting: list[Any] = []
        self.graph_mode, self.padded_tokens = "NONE", 0
        self.entered_s = self.returned_s = self.launch_s = self.given_s = 0.0
        self.queued = True


class WorkerExtension:
    """Methods that vLLM's worker gains; `self` is the worker."""

    def probe_install(self: Any, events: bool) -> None:
        """Starts to time every step; without `events` its launch only, which leaves the GPU's stream as it is."""
        if not events:
            leave_process_group()
        self.probe = Probe(self, events)

    def probe_always_draft(self: Any, num_tokens: int) -> None:
        """n-gram drafting finds nothing in random text: it is left to search, and drafts of full length are put in the place of its own."""
        drafter = self.model_runner.drafter
        propose = drafter.propose
        drafter.propose = lambda *args, **kwargs: [[1] * num_tokens for _ in propose(*args, **kwargs)]

    def probe_hold(self: Any, seconds: float, only_joined: bool) -> None:
        """Keeps the GPU busy for `seconds` (0: as served) before every step from here on, or only those that a sequence joins."""
        self.probe.hold_s, self.probe.hold_only_joined = seconds, only_joined

    def probe_logits(self: Any, peaked: bool) -> None:
        """From here on the sampler gets logits as a trained model has them, or those that the model computes."""
        self.probe.give_logits(peaked)

    def probe_drain(self: Any, num_steps: int) -> list[dict[str, Any]]:
        """The oldest `num_steps` steps not yet drained; later ones may still be in flight."""
        rows: list[dict[str, Any]] = self.probe.drain(num_steps)
        return rows

    def probe_launches(self: Any) -> dict[str, list[Any]]:
        """Graph mode, padded tokens and launch time of every step since the start, as columns."""
        steps = self.probe.steps
        columns = ("graph_mode", "padded_tokens", "launch_s")
        return {column: [getattr(step, column) for step in steps] for column in columns}

    @torch.inference_mode()  # type: ignore[untyped-decorator]  # torch ships no types here
    def probe_fill_kv_cache(self: Any, empty: bool = False) -> None:
        """Gives the KV cache the values that a context would have left there, or none (`empty`).

        Profiled sequences claim their context as computed instead of computing it. Freshly allocated memory is all zeros, which
        takes less power to read than real keys and values. But zeros are what dummy weights nearly leave there, so that with them
        the logits are those of dummy weights in service.
        """
        for cache in _tensors(self.model_runner.kv_caches):
            if empty:
                cache.zero_()
            elif cache.is_floating_point() and cache.element_size() > 1:
                cache.normal_()
            else:
                cache.view(torch.uint8).random_(0, 0x77)  # any byte below is a finite number in every fp8 format

    @torch.inference_mode()  # type: ignore[untyped-decorator]  # torch ships no types here
    def probe_randomize_weights(self: Any) -> None:
        """Replaces vLLM's dummy weights (±0.001) by normal ones of the scale that real models have.

        Of quantized weights it leaves less: rounded to 8 bits nearly all of them are zero, and 4-bit ones are memory as it was found
        (vLLM 0.26 `model_executor/model_loader/weight_utils.py` `initialize_single_dummy_weight`). Scales and indices stay.
        """
        for name, parameter in self.model_runner.get_model().named_parameters():
            if not parameter.is_floating_point() or parameter.element_size() == 1:
                if name.endswith("weight"):
                    _fill_quantized(parameter.data)
            elif parameter.dim() >= 2:
                parameter.data.normal_(0.0, 0.02)
            elif "norm" in name:
                parameter.data.fill_(1.0)

    def probe_quantized(self: Any) -> bool:
        """Whether any weight is stored in less than two bytes, or packed into integers."""
        parameters = self.model_runner.get_model().parameters()
        return any(parameter.element_size() == 1 or not parameter.is_floating_point() for parameter in parameters)

    def probe_host(self: Any) -> dict[str, float]:
        """How fast this worker's host is."""
        return host_speed(self.device)

    def probe_pool(self: Any) -> dict[str, int]:
        """The KV pool's blocks."""
        return {"num_gpu_blocks": int(self.cache_config.num_gpu_blocks), "block_size": int(self.cache_config.block_size)}

    def probe_memory(self: Any) -> dict[str, Any]:
        """What vLLM's worker found at its start, bytes (vLLM `v1/worker/gpu_worker.py` `determine_available_memory`)."""
        snapshot = getattr(self, "init_snapshot", None)
        report = {
            "total_bytes": getattr(snapshot, "total_memory", None),
            "free_at_start_bytes": getattr(snapshot, "free_memory", None),
            "requested_bytes": getattr(self, "requested_memory", None),
            "weights_bytes": getattr(self.model_runner, "model_memory_usage", None),
            "activation_peak_bytes": getattr(self, "peak_activation_memory", None),
            "non_torch_bytes": getattr(self, "non_torch_memory", None),
            "graphs_estimate_bytes": getattr(self, "cudagraph_memory_estimate", None),
            "available_kv_bytes": getattr(self, "available_kv_cache_memory_bytes", None),
        }
        report = {name: None if value is None else int(value) for name, value in report.items()}
        report["kv_cache_bytes"] = sum(cache.numel() * cache.element_size() for cache in _tensors(self.model_runner.kv_caches))
        report["model_runner"] = f"{type(self.model_runner).__module__}.{type(self.model_runner).__name__}"
        return report

    def probe_activation_peaks(self: Any, settings: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
        """(token budget, seats, bytes): peaks of temporary memory of vLLM's own profiling run, repeated at `settings` (budget, seats)."""
        runner = self.model_runner
        if self.device.type != "cuda":
            return []
        scheduler = runner.scheduler_config  # model runner V1 takes the seats of its profiling run from there
        started_with = runner.max_num_tokens, runner.max_num_reqs, scheduler.max_num_seqs
        peaks = []
        for tokens, seqs in settings:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            runner.max_num_tokens, runner.max_num_reqs, scheduler.max_num_seqs = tokens, seqs, seqs
            try:
                runner.profile_run()
            finally:
                runner.max_num_tokens, runner.max_num_reqs, scheduler.max_num_seqs = started_with
            peaks.append((tokens, seqs, torch.cuda.max_memory_allocated() - before))
        return peaks


class Probe:
    """Wraps the worker's `execute_model` and `sample_tokens`, and below them the choice of a CUDA graph and the drafting."""

    def __init__(self, worker: Any, events: bool) -> None:
        runner = worker.model_runner
        self.on_gpu = worker.device.type == "cuda" and events
        self.hold_s, self.hold_only_joined = 0.0, False
        self.steps: list[_Timed] = []
        self._peaked = False
        self._now: _Timed | None = None
        self._previous: _Timed | None = None
        self._cycles_per_s = self._calibrate() if self.on_gpu else 0.0
        self._device = worker.device
        self._given: torch.Tensor | None = None
        self._turn = 0
        self._wrap(runner.model, "compute_logits", self._with_logits)
        self._execute, worker.execute_model = worker.execute_model, self._timed_execute
        self._sample, worker.sample_tokens = worker.sample_tokens, self._timed_sample
        for chooser in ("cudagraph_manager", "cudagraph_dispatcher"):
            if getattr(runner, chooser, None) is not None:
                self._wrap(getattr(runner, chooser), "dispatch", self._chosen)
        if getattr(runner, "speculator", None) is not None:
            self._wrap(runner.speculator, "propose", self._drafted)
        elif hasattr(runner, "propose_draft_token_ids"):
            self._wrap(runner, "propose_draft_token_ids", self._drafted)

    @staticmethod
    def _wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        inner = getattr(owner, name)
        setattr(owner, name, lambda *args, **kwargs: wrapper(inner, *args, **kwargs))

    def _mark(self) -> Any:
        if not self.on_gpu:
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _calibrate(self) -> float:
        torch.cuda._sleep(_HOLD_CYCLES)  # noqa: SLF001 — the only kernel in torch that just waits
        begin, _, end = self._mark(), torch.cuda._sleep(_HOLD_CYCLES), self._mark()  # noqa: SLF001
        end.synchronize()
        return float(_HOLD_CYCLES / (begin.elapsed_time(end) / 1e3))

    def give_logits(self, peaked: bool) -> None:
        """Prepared logits for the sampler; of the model's own form, which is known once it has computed some."""
        self._peaked, self._given = peaked, None

    def _with_logits(self, compute_logits: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        step = self._now
        if step is None:
            return compute_logits(*args, **kwargs)
        step.marks.append(self._mark())
        logits = compute_logits(*args, **kwargs)
        step.marks.append(self._mark())
        if self._peaked and logits is not None:
            begin_s = perf_counter()
            self._put_given(logits)
            step.given_s = perf_counter() - begin_s
        step.marks.append(self._mark())
        return logits

    def _put_given(self, logits: torch.Tensor) -> None:
        if self._given is None:
            self._given = peaked_logits(_GIVEN_ROWS, logits.shape[1], self._device).to(logits.dtype)
        self._turn = (self._turn + 37) % _GIVEN_ROWS  # so that successive steps do not sample the same rows
        begin, rows = 0, len(logits)
        while begin < rows:
            first = self._turn if begin == 0 else 0
            taken = min(rows - begin, _GIVEN_ROWS - first)
            logits[begin : begin + taken].copy_(self._given[first : first + taken])
            begin += taken

    def _timed_execute(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        if not scheduler_output.total_num_scheduled_tokens:
            return self._execute(scheduler_output, *args, **kwargs)
        held = self.on_gpu and (bool(scheduler_output.scheduled_new_reqs) or not self.hold_only_joined)
        step = self._now = _Timed(self.hold_s if held else 0.0)
        if step.hold_s:
            torch.cuda._sleep(int(step.hold_s * self._cycles_per_s))  # noqa: SLF001
        step.marks.append(self._mark())
        step.entered_s = perf_counter()
        try:
            return self._execute(scheduler_output, *args, **kwargs)
        finally:
            step.launch_s = perf_counter() - step.entered_s
            step.queued = self.on_gpu and not step.marks[0].query()

    def _timed_sample(self, *args: Any, **kwargs: Any) -> Any:
        step = self._now
        if step is None:
            return self._sample(*args, **kwargs)
        entered_s = perf_counter()
        result = self._sample(*args, **kwargs)
        step.returned_s = perf_counter()
        self._now = None
        step.launch_s += step.returned_s - entered_s - step.given_s
        step.marks.append(self._mark())
        self.steps.append(step)
        return result

    def _chosen(self, dispatch: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        chosen = dispatch(*args, **kwargs)
        if self._now is not None and len(self._now.marks) == 1:  # the drafter, later in the step, chooses graphs of its own
            mode, descriptor = chosen if isinstance(chosen, tuple) else (chosen.cg_mode, chosen)
            self._now.graph_mode, self._now.padded_tokens = mode.name, descriptor.num_tokens
        return chosen

    def _drafted(self, propose: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        step = self._now
        if step is None:
            return propose(*args, **kwargs)
        step.drafting = [self._mark()]
        result = propose(*args, **kwargs)
        step.drafting.append(self._mark())
        return result

    def drain(self, num_steps: int) -> list[dict[str, Any]]:
        """Rows of the oldest steps, in their order. Seconds.

        `gpu_s` start to end on the GPU, `forward_s`, `logits_s` (the product with the vocabulary), `sample_s` and `draft_s` its parts;
        `peaked` whether the sampler got prepared logits, whose copying is left out; `launch_s` the launching thread's time;
        `period_s` end to end from the step before, as served (NaN behind a hold); `queued` whether the GPU was still busy with earlier
        work when the forward pass had been launched, so that `gpu_s` has no gaps.
        """
        steps, self.steps = self.steps[:num_steps], self.steps[num_steps:]
        if self.on_gpu and steps:
            steps[-1].marks[-1].synchronize()
        rows = []
        for step in steps:
            previous, self._previous = self._previous, step
            begin, forwarded, computed, given, end = step.marks
            draft_s = self._between(*step.drafting) if step.drafting else 0.0
            copy_s = self._between(computed, given)
            rows.append(
                {
                    "graph_mode": step.graph_mode,
                    "padded_tokens": step.padded_tokens,
                    "gpu_s": self._between(begin, end) - copy_s,
                    "forward_s": self._between(begin, forwarded),
                    "logits_s": self._between(forwarded, computed),
                    "sample_s": self._between(given, end) - draft_s,
                    "draft_s": draft_s,
                    "peaked": step.given_s > 0,
                    "launch_s": step.launch_s,
                    "launch_start_s": step.entered_s,
                    "launch_end_s": step.returned_s,
                    "period_s": float("nan") if previous is None or step.hold_s else self._between(previous.marks[-1], end),
                    "hold_s": step.hold_s,
                    "queued": step.queued,
                }
            )
        return rows

    def _between(self, begin: Any, end: Any) -> float:
        return float(begin.elapsed_time(end) / 1e3 if self.on_gpu else end - begin)


def _fill_quantized(weight: torch.Tensor) -> None:
    """Random bits where values are packed into integers; in 8 bits normal values, of which the largest are nearly the type's largest."""
    if not weight.is_floating_point():
        limits = torch.iinfo(weight.dtype)
        weight.random_(limits.min, limits.max)
        return
    largest = torch.finfo(weight.dtype).max
    for rows in weight.split(_FILLED_ROWS):  # a part at a time: the GPU is full
        values = torch.randn(rows.shape, dtype=torch.bfloat16, device=rows.device)
        rows.copy_(values.mul_(largest / _LARGEST_SIGMAS).clamp_(-largest, largest))


def _tensors(caches: Any) -> list[torch.Tensor]:
    """The tensors in vLLM's `kv_caches`: a list or dictionary of them, nested, some of them views of one buffer."""
    if isinstance(caches, torch.Tensor):
        return [caches]
    found: dict[int, torch.Tensor] = {}
    for part in caches.values() if isinstance(caches, dict) else caches:
        for tensor in _tensors(part):
            found.setdefault(tensor.data_ptr(), tensor)
    return list(found.values())
