"""One run on one screen: the answer first, then what it rests on."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from math import isinf, isnan, nan
from typing import Any

from simulator.artifacts.accuracy import accuracy_text
from simulator.config import Config
from simulator.fleet.text import fleet_text, verdict
from simulator.reporting.caveats import api_server
from simulator.reporting.summary import BENCH_NAMES
from simulator.reporting.wording import duration, slo_label, value_text

LABELS = {"queue": "queue", "ttft": "TTFT", "ttfvt": "TTFVT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E"}
STATISTICS = {"mean": "mean", "p50": "median", "p90": "p90", "p95": "p95", "p99": "p99"}


def run_text(config: Config, figures: Mapping[str, Any], description: str) -> str:
    """The text about a run.

    Args:
        config: the run's.
        figures: those of `summary.summary`, and `outside_domain`.
        description: of the workload, one line.
    """
    drafts, acceptance = config.opt.drafts, config.accepted()
    if drafts is not None and acceptance is not None:
        description += f"\ndrafts: {drafts.name}, {acceptance.in_words()}"
    parts = [_headline(config, figures), description, _latency_table(figures), _facts(figures)]
    if config.clients is not None:
        parts.append(f"clients    {config.clients.describe()}\n{clients_text(figures)}")
    parts += fleet_text(config, figures)
    if figures.get("slo"):
        parts.append("\n".join(_slo_line(outcome) for outcome in figures["slo"]))
    parts += _warnings(figures)
    parts += [f"Beware: {caveat}." for caveat in api_server(_emitted_tokens_per_s(config, figures))]
    if known := accuracy_text(config):
        parts.append(f"Accuracy: {known}.")
    return "\n\n".join(parts)


def _headline(config: Config, figures: Mapping[str, Any]) -> str:
    replicas, tp = config.cluster.num_replicas, config.tensor_parallel_size
    service = f"{replicas * tp} × {config.gpu.name}" + (f" ({replicas} replicas of {tp})" if tp > 1 else "")
    if config.autoscaling is not None:
        service = f"{figures['gpu_hours']:.3g} GPU-hours of {config.gpu.name}"
    beside = f", with {len(config.cluster.pools)} pool{'s' if len(config.cluster.pools) > 1 else ''} beside" if config.cluster.pools else ""
    text = (
        f"{service} with {config.model.name} ({config.opt.weights}){beside}: {figures['request_throughput']:.3g} requests/s,"
        f" {figures['output_throughput']:,.0f} output tokens/s over {duration(figures['duration'])}"
    )
    comparison = verdict(figures)
    return f"{text}\n{textwrap.fill(comparison, 120)}" if comparison else text


def _latency_table(figures: Mapping[str, Any]) -> str:
    lines = ["latency  " + "".join(f"{name:>10}" for name in STATISTICS)]
    for metric, label in LABELS.items():
        name = BENCH_NAMES.get(metric, metric)
        if f"mean_{name}_ms" in figures:
            values_s = (figures[f"{statistic}_{name}_ms"] / 1000 for statistic in STATISTICS.values())
            cells = ("> run" if isinf(value_s) else duration(value_s) for value_s in values_s)
            lines.append(f"{label:<9}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)


def _facts(figures: Mapping[str, Any]) -> str:
    counts = [f"{figures['completed']:,} completed"]
    names = {
        "censored": "unfinished (censored)",
        "unsent": "not sent",
        "rejected": "rejected",
        "truncated": "truncated",
        "never_visible": "ended while thinking",
        "preemptions": "preemptions",
        "held_back": "held back until there was predicted room",
    }
    counts += [f"{figures[key]:,} {name}" for key, name in names.items() if figures[key]]
    lines = [
        f"requests   {' · '.join(counts)}",
        f"running    {figures['running_mean']:.3g} on average, {figures['running_max']} at most",
        f"waiting    {figures['waiting_mean']:.3g} on average, {figures['waiting_max']} at most",
        f"KV cache   {figures['kv_usage_mean']:.0%} on average, {figures['kv_usage_max']:.0%} at most",
        f"GPU busy   {figures['gpu_utilization']:.0%}",
        (
            f"slowdown   {figures['mean_slowdown']:.3g} times an engine of its own on average, {figures['p99_slowdown']:.3g} at p99;"
            f" fairness {figures['slowdown_fairness']:.2f} (Jain's index)"
        ),
    ]
    if not isnan(figures.get("prefix_cache_hit_rate", nan)):
        hits, queries = figures["prefix_cache_hits"], figures["prefix_cache_queries"]
        lines.append(f"prefixes   {figures['prefix_cache_hit_rate']:.1%} of prompt tokens found in the cache ({hits:,} of {queries:,})")
    if not isnan(figures["straggler_slot_use"]):
        lines.append(
            f"stragglers batches of {figures['straggler_batch_size']}: {figures['straggler_slot_use']:.0%} of their slots' time in use,"
            f" the last eighth alone for {figures['straggler_tail']:.0%} of it"
        )
    return "\n".join(lines)


def clients_text(figures: Mapping[str, Any]) -> str:
    """What impatient clients did: figures of `summary.attempt_figures`."""
    ends = {"finished": "answered", "aborted": "aborted", "rejected": "refused (429)", "lost": "lost", "in_flight": "in flight"}
    shares = [f"{figures[f'{key}_share']:.1%} {name}" for key, name in ends.items() if figures[f"{key}_share"]]
    goodput = f"\ngoodput    {figures['request_goodput']:.3g} requests/s within every limit" if "request_goodput" in figures else ""
    return (
        f"attempts   {figures['attempts']:,}, {figures['attempts_per_request']:.3g} a request: {' · '.join(shares)}\n"
        f"given up   {figures['given_up_share']:.1%} of requests for good;"
        f" {figures['wasted_token_share']:.1%} of tokens emitted in vain{goodput}"
    )


def _slo_line(outcome: Mapping[str, Any]) -> str:
    name = outcome["name"]
    bound = "at least" if name == "min_goodput_share" else "at most"
    verdict = f"{'met' if outcome['met'] else 'MISSED'}, {value_text(name, outcome['value'])}"
    if isnan(outcome["value"]):
        verdict = "no request to judge by"
    return f"SLO {slo_label(name)} {bound} {value_text(name, outcome['limit'])}: {verdict}"


def _warnings(figures: Mapping[str, Any]) -> list[str]:
    outside = {name: share for name, share in figures.get("outside_domain", {}).items() if share >= 0.0005}
    if not outside:
        return []
    features = ", ".join(f"{name} in {share:.1%} of the time" for name, share in outside.items())
    return [f"Extrapolated: above what was measured lie {features}."]


def _emitted_tokens_per_s(config: Config, figures: Mapping[str, Any]) -> float:
    """Of one engine, of those that answer."""
    if config.autoscaling is not None:
        engines = figures["gpu_hours"] * 3600 / config.tensor_parallel_size / figures["duration"]
    else:
        engines = config.cluster.num_replicas + sum(pool.num_replicas for pool in config.cluster.pools)
    return float(figures["output_throughput"] / engines)
