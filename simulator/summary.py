"""All figures of a run, by name: throughput, latencies, use of the service, stragglers."""

from __future__ import annotations

from math import nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.cluster import NS_PER_S
from simulator.itl import inter_token_latency
from simulator.metrics import Latency, Window, judge, latencies, sent_in, within_limits
from simulator.simulate import Result
from simulator.slo import Slos
from simulator.steplog import StepLog
from simulator.workload import Barrier

PERCENTILES = (50.0, 90.0, 95.0, 99.0)
BENCH_NAMES = {"queue": "queue", "ttft": "ttft", "ttfvt": "ttfvt", "tpot": "tpot", "e2e": "e2el"}
"""Latencies, with the names of `vllm bench serve` where it has one."""

STUDY_BATCH = 16
"""Stragglers of traffic without batches are those of so many requests sent one after another: arXiv 2510.18672's batch."""


def summary(result: Result, slos: Slos | None = None, window: Window | None = None, *, itl: bool = True) -> dict[str, Any]:
    """Every figure of a run, named as `vllm bench serve` (0.26 `benchmarks/serve.py`) names it where it does.

    Args:
        result: the run.
        slos: adds `request_goodput`, `goodput_share` and `slo`.
        window: steady state; everything but `gpu_utilization` is of the window alone.
        itl: whether to compute inter-token latencies, which takes longer than all the rest.

    Returns:
        Latencies in milliseconds (`p99_e2el_ms` is infinite where the run was too short to see it), rates per second, shares
        between 0 and 1. `output_throughput` counts the tokens of unfinished requests, too.
    """
    found = latencies(result, window)
    return {
        **_counts(result, window),
        **_throughput(result, slos, window),
        **_latency_figures(found),
        **(_itl_figures(result, window) if itl else {}),
        **_use(result, window),
        **_prefix_cache(result, window),
        **stragglers(result, window),
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
    low_ns, high_ns = _edges_ns(result, window)
    return {
        "duration": (high_ns - low_ns) / NS_PER_S,
        "num_requests": int(sent.sum()),
        "completed": int((sent & finished).sum()),
        "censored": int((sent & ~finished).sum()),
        "unsent": int((result.sent_ns < 0).sum()),
        "rejected": result.scenario.workload.rejected,
        "truncated": int((requests.truncated & finished & sent).sum()),
        "never_visible": int(((requests.visible_token > requests.output_tokens) & finished & sent).sum()),
        "preemptions": int(result.preemptions[sent].sum()),
        "preempted_requests": int((result.preemptions[sent] > 0).sum()),
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
    kv_usage = timeline.kv_blocks[inside] / result.scenario.engine.usable_blocks
    running, waiting = timeline.running[inside].sum(1), timeline.waiting[inside].sum(1)

    def mean(samples: NDArray[Any]) -> float:
        return float(samples.mean()) if samples.size else nan

    return {
        # The last step launched may end after the run.
        "gpu_utilization": min(float(result.busy_ns.mean() / result.end_ns), 1.0) if result.end_ns else nan,
        "kv_usage_mean": mean(kv_usage),
        "kv_usage_max": float(kv_usage.max(initial=0.0)),
        "running_mean": mean(running),
        "running_max": int(running.max(initial=0)),
        "waiting_mean": mean(waiting),
        "waiting_max": int(waiting.max(initial=0)),
        "batch_tokens_mean": mean(timeline.batch_tokens[inside].sum(1)),
    }


def _prefix_cache(result: Result, window: Window | None) -> dict[str, float]:
    """Prompt tokens looked up and found, named as vLLM's metrics; nothing without prefix caching.

    Each request counts once: vLLM keeps preempted ones that come back apart, too, but 0.26 counts a head of the queue again in every
    step in which it is looked up and then held back (0.32 does not).
    """
    if not result.scenario.engine.enable_prefix_caching:
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
    batches = rows[: len(rows) // size * size].reshape(-1, size)
    batches = batches[(result.finish_ns[batches] >= 0).all(1)]
    if not len(batches):
        return {"straggler_batch_size": size, "straggler_slot_use": nan, "straggler_tail": nan}
    tokens = result.requests.output_tokens[batches]
    elapsed_ns = np.sort(result.finish_ns[batches] - result.sent_ns[batches], axis=1)
    most_done = elapsed_ns[:, size - size // 8 - 1]
    return {
        "straggler_batch_size": size,
        "straggler_slot_use": float((tokens.mean(1) / tokens.max(1)).mean()),
        "straggler_tail": float((1 - most_done / elapsed_ns[:, -1]).mean()),
    }
