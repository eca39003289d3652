"""A comparison in words: one JSON object, a table of one trace, one table of all."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from validation.compare import LABELS, PER_REQUEST, Comparison, Row, relative
from validation.intervals import STATISTICS
from validation.replay import shown

UNITS = {
    "duration_s": ("duration", "s"),
    "output_tokens_per_s": ("output throughput", "tokens/s"),
    "itl_p99_s": ("ITL p99 of all tokens", "s"),
    "itl_max_s": ("ITL, longest of all", "s"),
    "num_gpu_blocks": ("KV blocks", ""),
}


def as_json(comparison: Comparison) -> dict[str, Any]:
    """One trace's errors, signed and relative."""
    preempted = comparison.preemptions
    totals = {name: relative(*pair) for name, pair in comparison.totals.items()}
    return {
        "trace": comparison.replay.recording.meta.name,
        "cost_model": shown(comparison.replay.cost_model),
        "in_sample": comparison.replay.in_sample,
        "requests": len(comparison.replay.result.requests),
        "unfinished": comparison.unfinished,
        "errors": {
            **{name: row.errors for name, row in comparison.rows.items()},
            "duration_s": totals.get("duration_s"),
            "output_tokens_per_s": totals.get("output_tokens_per_s"),
            "num_gpu_blocks": totals.get("num_gpu_blocks"),
            "e2e_s_mean_abs": comparison.mean_abs["e2e_s"],
        },
        "preemptions": {"measured": preempted.measured, "simulated": preempted.simulated},
        "preempted_requests": {
            name: getattr(preempted, name) for name in ("both", "only_measured", "only_simulated") if preempted.both is not None
        },
        "prefix_cache": comparison.prefix_cache and asdict(comparison.prefix_cache),
        "intervals": {name: row.intervals for name, row in comparison.rows.items() if any(row.intervals.values())},
        "mean_abs_errors": comparison.mean_abs,
        "average_abs_error": comparison.average_abs,
        "kv_usage_mean_abs_difference": comparison.kv_usage_mean_abs,
        "itl_of_all_tokens": {name: totals[name] for name in ("itl_p99_s", "itl_max_s") if name in totals},
    }


def as_text(comparison: Comparison) -> str:
    """The same as a table."""
    replay = comparison.replay
    lines = [
        f"{replay.recording.meta.name}: {len(replay.result.requests):,} requests",
        f"cost model {shown(replay.cost_model)} ({replay.sample})",
        *_cut(comparison),
        "",
        f"{'simulated / measured − 1':<28}"
        + "".join(f"{name:>9}" for name in STATISTICS)
        + f"{'measured mean':>17}   95 % interval of the mean",
    ]
    lines += [_line(name, row) for name, row in comparison.rows.items()]
    for name, (simulated, measured) in comparison.totals.items():
        label, unit = UNITS[name]
        shown_value = _seconds(measured) if name.startswith("itl") else f"{measured:,.0f} {unit}".strip()
        lines.append(f"{label:<28}{percent(relative(simulated, measured)):>9}{'':27}{shown_value:>17}")
    for name in PER_REQUEST:
        lines.append(f"{f'{LABELS[name]}, mean |error|':<28}{comparison.mean_abs[name]:>9.2%}")
    lines += [_preemptions(comparison), *_prefix_cache(comparison)]
    return "\n".join(lines)


def _cut(comparison: Comparison) -> list[str]:
    cut_s = comparison.replay.recording.meta.cut_s
    if cut_s is None:
        return []
    return [f"cut after {cut_s:.1f} s: {comparison.unfinished} requests had not ended then; they are simulated, not compared"]


def _line(name: str, row: Row) -> str:
    ends = row.intervals["mean"]
    certain = f"   {percent(ends[0])} … {percent(ends[1])}" if ends else ""
    return f"{LABELS[name]:<28}" + "".join(f"{percent(row.errors[s]):>9}" for s in STATISTICS) + f"{_value(name, row):>17}" + certain


def _preemptions(comparison: Comparison) -> str:
    found = comparison.preemptions
    recorded = "not recorded" if found.measured is None else f"{found.measured:,}"
    line = f"{'preemptions':<28}{found.simulated:>9,}{'':27}{recorded:>17}"
    if found.both is not None and (found.simulated or found.measured):
        line += f"   requests: {found.both} in both, {found.only_measured} only measured, {found.only_simulated} only simulated"
    return line


def _prefix_cache(comparison: Comparison) -> list[str]:
    cache = comparison.prefix_cache
    if cache is None:
        return []
    here, there = (hits / cache.prompt_tokens for hits in (cache.simulated_hits, cache.measured_hits))
    same = f"as many in {cache.same_requests} of {cache.requests} requests"
    return [f"{'prompt tokens from the cache':<28}{here:>9.2%}{'':27}{there:>17.2%}   {same}"]


def percent(error: float | None) -> str:
    """+1.23 %, without a space."""
    return "–" if error is None else f"{error:+.2%}"


def _value(name: str, row: Row) -> str:
    mean = row.measured["mean"]
    return f"{mean:.1%}" if name == "kv_usage" else _seconds(mean)


def _seconds(value: float) -> str:
    return f"{value:,.2f} s" if value >= 1 else f"{value * 1000:,.2f} ms"
