"""All figures of a run, by name: throughput, latencies, use of the service, stragglers."""

from __future__ import annotations

from math import nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.clients.attempts import Attempts, Outcome
from simulator.cluster import NS_PER_S
from simulator.metrics import Latency, Window, judge, latencies, sent_in, within_limits
from simulator.planning.slo import Slos
from simulator.policies.fairness import fairness
from simulator.simulate import Result
from simulator.step.itl import inter_token_latency
from simulator.step.steplog import StepLog
from simulator.workload import Barrier

PERCENTILES = (50.0, 90.0, 95.0, 99.0)
BENCH_NAMES = {"queue": "queue", "ttft": "ttft", "ttfvt": "ttfvt", "tpot": "tpot", "e2e": "e2el"}
"""Latencies, with the names of `vllm bench serve` where it has one."""

EMPTY = -1
"""A slot of a batch without a request."""
STUDY_BATCH = 16
"""Stragglers of traffic without batches are those of so many requests sent one after another: arXiv 2510.18672's batch."""


def summary(result: Result, slos: Slos | None = None, window: Window | None = None, *, itl: bool = True) -> dict[str, Any]:
    """Every figure of a run, named as `vllm bench serve` (0.26 `benchmarks/serve.py`) names it where it does.

    Args:
        result: the run.
        slos: adds `request_goodput`, `goodput_share` and `slo`.
        window: steady state; everything but `gpu_utilization` and `gpu_hours` are of the window alone.
        itl: whether to compute inter-token latencies, which takes longer than all the rest.

    Returns:
        Latencies in milliseconds (`p99_e2el_ms` is infinite where the run was too short to see it), of requests that were not given
        up, from their first attempt on; rates per second, shares between 0 and 1. `output_throughput` counts the tokens of
        unfinished requests, too.
    """
    found = latencies(result, window)
    return {
        **_counts(result, window),
        **({} if result.attempts is None else attempt_figures(result, result.attempts, window)),
        **_throughput(result, slos, window),
        **_latency_figures({name: latency.answered() for name, latency in found.items()}),
        **(_itl_figures(result, window) if itl else {}),
        **_use(result, window),
        **_prefix_cache(result, window),
        **stragglers(result, window),
        **fairness(result, window),
        **({} if slos is None else {"slo": [vars(outcome) for outcome in judge(result, slos, window)]}),
    }


def _edges_ns(result: Result, window: Window | None) -> tuple[int, int]:
    if window is not None:
        low, high = (round(edge * NS_PER_S) for edge in window)
        return low, high
    finished = bool((result.finish_ns >= 0).all())
    return 0, max(result.end_ns, int(result.finish_ns.max(initial=0))) if finished else result.end_ns


def _counts(result: Result, window: Window | None) -> dict[str, Any]:
    requests, sent = result.requests, sent_in(result, window)
    finished = result.finish_ns >= 0
    gave_up = np.zeros_like(sent) if result.attempts is None else result.attempts.gave_up
    low_ns, high_ns = _edges_ns(result, window)
    return {
        "duration": (high_ns - low_ns) / NS_PER_S,
        "num_requests": int(sent.sum()),
        "completed": int((sent & finished).sum()),
        "censored": int((sent & ~finished & ~gave_up).sum()),
        "unsent": int((result.asked_ns < 0).sum()),
        "rejected": result.scenario.workload.rejected,
        "truncated": int((requests.truncated & finished & sent).sum()),
        "never_visible": int(((requests.visible_token > requests.output_tokens) & finished & sent).sum()),
        "preemptions": int(result.preemptions[sent].sum()),
        "preempted_requests": int((result.preemptions[sent] > 0).sum()),
        "held_back": int(result.held_back[sent].sum()),
    }


def attempt_figures(result: Result, attempts: Attempts, window: Window | None) -> dict[str, float]:
    """What clients did that do not wait for ever: shares of attempts, of requests, and of the tokens emitted.

    `attempts_per_request` above 1 is load that retries add. `wasted_token_share`: tokens of answers that nobody got.
    """
    low_ns, high_ns = _edges_ns(result, window)
    sent = (low_ns <= result.sent_ns) & (result.sent_ns <= high_ns)
    asked = sent_in(result, window)
    shares = {
        f"{outcome.name.lower()}_share": float((attempts.outcome[sent] == outcome).mean()) if sent.any() else nan
        for outcome in (Outcome.FINISHED, Outcome.ABORTED, Outcome.REJECTED, Outcome.LOST, Outcome.IN_FLIGHT)
    }
    emitted = result.emitted_tokens[sent]
    wasted = emitted[np.isin(attempts.outcome[sent], (Outcome.ABORTED, Outcome.LOST))]
    return {
        "attempts": int(sent.sum()),
        "attempts_per_request": float(attempts.number[asked].mean()) if asked.any() else nan,
        **shares,
        "retried_share": float((attempts.number[asked] > 1).mean()) if asked.any() else nan,
        "given_up": int(attempts.gave_up[asked].sum()),
        "given_up_share": float(attempts.gave_up[asked].mean()) if asked.any() else nan,
        "wasted_token_share": float(wasted.sum() / max(emitted.sum(), 1)),
    }


def _throughput(result: Result, slos: Slos | None, window: Window | None) -> dict[str, Any]:
    low_ns, high_ns = _edges_ns(result, window)
    duration_s = (high_ns - low_ns) / NS_PER_S or nan
    done = (low_ns <= result.finish_ns) & ((result.finish_ns < high_ns) if window else (result.finish_ns >= 0))
    input_tokens = int(result.requests.prompt_tokens[done].sum())
    output_tokens = int(result.emitted_tokens.sum()) if window is None else _emitted(result, high_ns) - _emitted(result, low_ns)
    figures = {
        "total_input_tokens": input_tokens,
        "total_output_tokens": output_tokens,
        "request_throughput": int(done.sum()) / duration_s,
        "output_throughput": output_tokens / duration_s,
        "total_token_throughput": (input_tokens + output_tokens) / duration_s,
    }
    if slos is not None and slos.per_request:
        ratio = within_limits(result, slos, window)
        figures["request_goodput"] = int((ratio.observed & (ratio.values_s <= 1)).sum()) / duration_s
        figures["goodput_share"] = ratio.attainment(1.0)
    return figures


def _emitted(result: Result, upto_ns: int) -> int:
    """Tokens that steps ending before `upto_ns` emitted."""
    return sum(log.emitted_before(_steps_before(log, upto_ns)) for log in result.logs)


def _steps_before(log: StepLog, upto_ns: int) -> int:
    """Number of steps that end before `upto_ns`."""
    rows = log.rows
    row = int(np.searchsorted(rows[:, 9], upto_ns))
    if row == len(rows):
        return log.num_steps
    steps = np.arange(rows[row, 0], rows[row, 0] + rows[row, 1])
    return int(rows[row, 0] + np.searchsorted(log.end_ns(steps), upto_ns))


def _latency_figures(found: dict[str, Latency]) -> dict[str, float]:
    figures = {}
    for metric, latency in found.items():
        name = BENCH_NAMES[metric]
        percentiles = latency.percentiles(PERCENTILES)
        mean_s, std_s = latency.moments()
        figures[f"mean_{name}_ms"] = mean_s * 1000
        figures[f"median_{name}_ms"] = percentiles[50.0] * 1000
        figures[f"std_{name}_ms"] = std_s * 1000
        figures |= {f"p{p:g}_{name}_ms": value * 1000 for p, value in percentiles.items()}
    return figures


def _itl_figures(result: Result, window: Window | None) -> dict[str, float]:
    itl = inter_token_latency(result, PERCENTILES, sent_in(result, window))
    percentiles = {f"p{p:g}_itl_ms": value * 1000 for p, value in itl.percentiles_s.items()}
    head = {"mean_itl_ms": itl.mean_s, "median_itl_ms": itl.percentiles_s[50.0], "std_itl_ms": itl.std_s, "max_itl_ms": itl.max_s}
    return {name: value * 1000 for name, value in head.items()} | percentiles


def _use(result: Result, window: Window | None) -> dict[str, float]:
    """How the service was used, from the timeline's samples; `running` and `waiting` are of all replicas together."""
    timeline = result.timeline
    low_ns, high_ns = _edges_ns(result, window)
    inside = (low_ns <= timeline.time_ns) & (timeline.time_ns <= high_ns)
    kv_usage = timeline.kv_blocks[inside] / result.usable_blocks
    running, waiting = timeline.running[inside].sum(1), timeline.waiting[inside].sum(1)

    def mean(samples: NDArray[Any]) -> float:
        return float(samples.mean()) if samples.size else nan

    return {
        "gpu_utilization": result.gpu_utilization,
        "gpu_hours": result.gpu_ns / NS_PER_S / 3600,
        "kv_usage_mean": mean(kv_usage),
        "kv_usage_max": float(kv_usage.max(initial=0.0)),
        "running_mean": mean(running),
        "running_max": int(running.max(initial=0)),
        "waiting_mean": mean(waiting),
        "waiting_max": int(waiting.max(initial=0)),
        "batch_tokens_mean": mean(timeline.batch_tokens[inside].sum(1)),
    }


def _prefix_cache(result: Result, window: Window | None) -> dict[str, float]:
    """Prompt tokens looked up and found, named as vLLM's metrics; nothing without prefix caching, or where there is nothing to find.

    Each request counts once: vLLM keeps preempted ones that come back apart, too, but 0.26 counts a head of the queue again in every
    step in which it is looked up and then held back (0.32 does not).
    """
    caching = any(group.engine.enable_prefix_caching for group in result.scenario.groups)
    if not caching or (result.requests.content is None and not result.cached_tokens.any()):
        return {}
    admitted = sent_in(result, window) & (result.scheduled_ns >= 0)
    queries, hits = int(result.requests.prompt_tokens[admitted].sum()), int(result.cached_tokens[admitted].sum())
    return {"prefix_cache_queries": queries, "prefix_cache_hits": hits, "prefix_cache_hit_rate": hits / queries if queries else nan}


def stragglers(result: Result, window: Window | None = None) -> dict[str, float]:
    """How long the last of a batch are alone; batches of `batch_size`, or of 16 requests sent one after another.

    `straggler_slot_use`: mean output length of a batch over its longest, the share of its slots' time that is used if the batch
    is awaited (arXiv 2510.18672: 0.28–0.46 on MATH). `straggler_tail`: share of a batch's time, from a request's sending to its end,
    in which at most an eighth of its requests is left. Means over batches; NaN where none has finished.
    """
    loop = result.scenario.workload.loop
    size = loop.batch_size if isinstance(loop, Barrier) else STUDY_BATCH
    rows = np.flatnonzero(sent_in(result, window))
    if isinstance(loop, Barrier):  # the slots that the last batch leaves empty are unused, too
        rows = np.append(rows, np.full(-len(rows) % size, EMPTY))
    batches = rows[: len(rows) // size * size].reshape(-1, size)
    batches = batches[((batches == EMPTY) | (result.finish_ns[batches] >= 0)).all(1)]
    if not len(batches):
        return {"straggler_batch_size": size, "straggler_slot_use": nan, "straggler_tail": nan}
    empty = batches == EMPTY
    tokens = np.where(empty, 0, result.requests.output_tokens[batches])
    elapsed_ns = np.sort(np.where(empty, 0, result.finish_ns[batches] - result.sent_ns[batches]), axis=1)
    most_done = elapsed_ns[:, size - size // 8 - 1]
    return {
        "straggler_batch_size": size,
        "straggler_slot_use": float((tokens.mean(1) / tokens.max(1)).mean()),
        "straggler_tail": float((1 - most_done / elapsed_ns[:, -1]).mean()),
    }
