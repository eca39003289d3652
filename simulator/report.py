"""A plan on one screen: the answer first, then what it rests on, then the sizes tried."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.plan import Plan
from simulator.planning.candidate import GOODPUT, Candidate, Check, pooled
from simulator.reporting.caveats import caveats
from simulator.reporting.wording import duration, plus_minus, slo_label, value_text

if TYPE_CHECKING:
    from simulator.config import Config

WIDTH = 120
HEIGHT = 23
"""Lines of the text, with room for where the files are on a screen of 25."""
LABEL = 14
LESS_IMPORTANT = (
    "step times",
    "traffic",
    "accuracy",
    "simulated",
    "extrapolated",
    "steady state",
    "how sure",
    "one fewer",
    "beware",
    "binding SLO",
)
"""What is cut short first where the screen is too low; the page has it all."""
OBSERVED = ("TTFT p50", "TTFVT p50", "E2E p50", "E2E p99", "GPU busy", "KV max", "running", "waiting")
"""Columns of the table beside those of the SLOs."""
PERCENTILES = (50.0, 90.0, 95.0, 99.0)


def show(config: Config, plan: Plan) -> None:
    """Prints the answer, and writes manifest.json, summary.json and report.html to the folder of the results.

    Raises:
        UserError: the folder cannot be written.
    """
    from simulator.reporting.page import page
    from simulator.results import folder, manifest, to_json, write_folder

    contents = manifest(config, traffic(plan))
    texts = {"manifest.json": to_json(contents), "summary.json": to_json(summary(plan)), "report.html": page(plan)}
    target = write_folder(folder(config, contents), texts, {})
    sys.stdout.write(f"{text(plan)}\n\nreport: {target / 'report.html'}\n")
    sys.stdout.flush()


def text(plan: Plan) -> str:
    """One screen."""
    head = [*textwrap.wrap(headline(plan), WIDTH, break_on_hyphens=False), ""]
    foot = ["", *_aligned(table(plan))] if plan.candidates else []
    found = facts(plan)
    wrapped = {label: textwrap.wrap(sentence, WIDTH - LABEL, break_on_hyphens=False) for label, sentence in found}
    for least in (2, 1):
        for label in LESS_IMPORTANT:
            over = len(head) + sum(map(len, wrapped.values())) + len(foot) - HEIGHT
            lines = wrapped.get(label, [])
            if over > 0 and len(lines) > least:
                kept = max(len(lines) - over, least)
                wrapped[label] = textwrap.wrap(dict(found)[label], WIDTH - LABEL, break_on_hyphens=False, max_lines=kept, placeholder=" …")
    body = [f"{'' if row else label:<{LABEL}}{line}" for label, lines in wrapped.items() for row, line in enumerate(lines)]
    return "\n".join([*head, *body, *foot])


def headline(plan: Plan) -> str:
    """The answer in a sentence."""
    artifact, question = plan.question.cost.artifact, plan.question
    service = f"{question.model or artifact.model} ({artifact.weights}){f' at {plan.demand.rate:.3g} requests/s' if plan.demand else ''}"
    if plan.num_replicas is None:
        return f"No number of GPUs up to {question.max_gpus} will do for {service}: {plan.reason}."
    each = f"one {artifact.gpu} each" if question.gpus_per_replica == 1 else f"{question.gpus_per_replica} × {artifact.gpu} each"
    replicas = (
        f"{plan.num_replicas} replicas, {each},"
        if plan.num_replicas > 1
        else f"one replica on {question.gpus_per_replica} × {artifact.gpu}"
    )
    split = question.split(plan.num_replicas)
    if split is not None:
        replicas = f"{split.prefill_replicas} for prompts and {plan.num_replicas - split.prefill_replicas} for answers, {each},"
    beside = " beside " + " and ".join(f"{pool.num_replicas} of {pool.name}" for pool in question.others) if question.others else ""
    router = f" behind a {question.router} router" if plan.num_replicas > 1 or beside else ""
    return f"You need {_gpus(plan, plan.num_replicas)}{beside}: {replicas}{router}, for {service}."


def facts(plan: Plan) -> list[tuple[str, str]]:
    """What the answer rests on: (label, sentence), the most important first."""
    found = [
        ("binding SLO", _binding(plan)),
        ("one fewer", _one_fewer(plan)),
        ("how sure", _how_sure(plan)),
        ("steady state", _steady(plan)),
    ]
    found += [
        ("simulated", _simulated(plan)),
        ("traffic", traffic(plan)),
        ("accuracy", plan.accuracy),
        ("spares", plan.question.spares.describe(plan.gpus) if plan.question.spares and plan.gpus else ""),
        ("clients", _clients(plan)),
        ("split", plan.question.disaggregation.describe() if plan.question.disaggregation else ""),
        ("step times", _step_times(plan)),
        ("drafts", _drafts(plan)),
        ("extrapolated", _extrapolated(plan)),
    ]
    found.append(("beware", "; ".join(caveats(plan))))
    return [(label, sentence) for label, sentence in found if sentence]


def _drafts(plan: Plan) -> str:
    speculative, acceptance = plan.question.engine.speculative, plan.question.acceptance
    return "" if speculative is None or acceptance is None else f"{speculative.name}: {acceptance.in_words()}"


def table(plan: Plan) -> list[list[str]]:
    """The sizes tried, the header first."""
    checks = next(iter(plan.candidates.values())).checks
    limits = [f"{slo_label(check.name)} {'≥' if check.name == GOODPUT else '≤'} {value_text(check.name, check.limit)}" for check in checks]
    rows = [["GPUs", "suffices", "chance", *limits, *OBSERVED]]
    for num, candidate in plan.candidates.items():
        trials = candidate.trials
        verdict = "unstable" if candidate.unstable else "yes" if candidate.suffices else "no"
        latencies = {name: pooled(trials, name) for name in ("ttft", "ttfvt", "e2e")}
        steady = [_steady_means(plan, candidate, name) for name in ("running", "queue")]
        rows.append([
            f"{num * plan.question.gpus_per_replica}{' ←' if num == plan.num_replicas else ''}",
            verdict,
            _chance(candidate.chance) if len(trials) > 1 else "–",
            *(f"{_bound(plan, num, check)[0]}{_with_interval(check)}" for check in candidate.checks),
            duration(latencies["ttft"].percentile(50)),
            duration(latencies["ttfvt"].percentile(50)),
            duration(latencies["e2e"].percentile(50)),
            duration(latencies["e2e"].percentile(99)),
            f"{np.mean([trial.gpu_utilization for trial in trials]):.0%}",
            f"{max(float(trial.kv_usage.max()) for trial in trials):.0%}",
            f"{steady[0]:,.0f}",
            f"{steady[1]:,.0f}",
        ])  # fmt: skip
    return rows


def traffic(plan: Plan) -> str:
    """What was served, and where the lengths are from; empty if no request fits into the engine."""
    if plan.demand is None:
        return ""
    requests = plan.demand.requests
    return (
        f"{plan.traffic}; {requests.prompt_tokens.mean():,.0f} prompt and {requests.output_tokens.mean():,.0f} output tokens on average,"
        f" {requests.truncated.mean():.1%} of outputs truncated"
    )


def summary(plan: Plan) -> dict[str, Any]:
    """All figures of the answer, for programs; latencies in milliseconds, shares between 0 and 1."""
    return {
        "gpus": plan.gpus,
        "replicas": plan.num_replicas,
        "gpus_per_replica": plan.question.gpus_per_replica,
        "nodes_to_own": plan.question.spares.nodes(plan.gpus) if plan.question.spares and plan.gpus else None,
        "router": plan.question.router,
        "infeasible": plan.reason or None,
        "binding_slo": None if plan.chosen is None else plan.chosen.binding.name,
        "gpus_interval": plan.interval,
        "confidence": plan.question.confidence,
        "simulated_hours": plan.simulated_s / 3600,
        "simulated_requests": plan.simulated_requests,
        "seeds": list(plan.question.seeds),
        "warmup_s": None if plan.period is None else plan.period.warmup_s,
        "measured_s": None if plan.period is None else plan.period.measured_s,
        "cooldown_s": None if plan.period is None else plan.period.cooldown_s,
        "settled": plan.settled,
        "rising": [num * plan.question.gpus_per_replica for num in plan.rising],
        "accuracy": plan.accuracy or None,
        "candidates": [_summary_of(plan, candidate) for candidate in plan.candidates.values()],
    }


def _summary_of(plan: Plan, candidate: Candidate) -> dict[str, Any]:
    return {
        "gpus": candidate.num_replicas * plan.question.gpus_per_replica,
        "suffices": candidate.suffices,
        "unstable": candidate.unstable,
        "chance": candidate.chance,
        "trend_in_system": vars(candidate.in_system),
        "trend_waiting": vars(candidate.waiting),
        "runs": len(candidate.trials),
        "requests": sum(trial.num_requests for trial in candidate.trials),
        "censored": _censored(candidate),
        "preemptions": sum(trial.preemptions for trial in candidate.trials),
        "clients": [trial.attempts for trial in candidate.trials] if candidate.trials[0].attempts else None,
        "output_throughput": float(np.mean([trial.output_tokens_per_s for trial in candidate.trials])),
        "slo": [{"name": c.name, "limit": c.limit, **vars(c.estimate), "share": c.share, "headroom": c.headroom} for c in candidate.checks],
        "latency_ms": {
            metric: {f"p{p:g}": value * 1000 for p, value in pooled(candidate.trials, metric).percentiles(PERCENTILES).items()}
            for metric in ("ttft", "ttfvt", "tpot", "e2e")
        },
    }


# -- sentences -------------------------------------------------------------------------------------------------------------


def _binding(plan: Plan) -> str:
    if plan.chosen is None:
        return ""
    check = plan.chosen.binding
    interval = _interval(check)
    return (
        f"{slo_label(check.name)} is {value_text(check.name, check.estimate.value)}, the limit {value_text(check.name, check.limit)}:"
        f" {check.headroom:.1%} to spare{f' ({plan.question.confidence:.0%} interval {interval})' if interval else ''}"
    )


def _one_fewer(plan: Plan) -> str:
    if plan.num_replicas is None or plan.num_replicas - 1 not in plan.candidates:
        return ""
    fewer = plan.candidates[plan.num_replicas - 1]
    with_it = f"with {_gpus(plan, fewer.num_replicas)}"
    if fewer.unstable:
        growth = fewer.in_system
        return f"{with_it} the service is unstable: requests in it rise by {growth.share:.0%} of their mean while it is measured"
    failed = [check for check in fewer.checks if not check.met]
    parts = [
        f"{slo_label(c.name)} is {_bound(plan, fewer.num_replicas, c)[1]}{value_text(c.name, c.estimate.value)},"
        f" {-c.headroom:.1%} beyond its limit"
        for c in failed
    ]
    return f"{with_it} {'; '.join(parts)}"


def _bound(plan: Plan, num_replicas: int, check: Check) -> tuple[str, str]:
    """Sign and words before the figure of a size that still fills while it is measured; empty of all others."""
    if num_replicas not in plan.rising:
        return "", ""
    return ("≤ ", "at most ") if check.name == GOODPUT else ("≥ ", "at least ")


def _how_sure(plan: Plan) -> str:
    if plan.num_replicas is None:
        return ""
    if plan.interval is None:
        return "one trace, one run: it says nothing about how other traffic would differ"
    low, high = plan.interval
    fewer = plan.candidates.get(plan.num_replicas - 1)
    less = f", {_gpus(plan, fewer.num_replicas)} with {_chance(fewer.chance)}" if fewer else ""
    span = _count(low) if low == high else f"{low} to {high} GPUs" if high else f"{_count(low)} or more"
    gpus = _gpus(plan, plan.num_replicas)
    return (
        f"{plan.question.confidence:.0%} interval of the answer: {span}; {gpus} suffice{'s' * (gpus == _count(1))} with a chance of"
        f" {_chance(plan.candidates[plan.num_replicas].chance)}{less} (traffic's chance; step times' error comes on top)"
    )


def _steady(plan: Plan) -> str:
    if plan.period is None:
        return ""
    judged = plan.chosen or next(reversed(plan.candidates.values()))
    (low, high), trend = plan.period.window, judged.in_system
    requests = sum(trial.num_requests for trial in judged.trials)
    began = "it begins empty"
    if not plan.question.replays:
        level = np.mean([trial.in_system.mean() for trial in judged.trials])
        began = f"it begins with {np.mean([t.started for t in judged.trials]):,.0f} under way (Little's law; {level:,.0f} while measured)"
    return (
        f"measured are {requests:,} requests that arrived {low:,.0f}–{high:,.0f} s into a run, the warm-up cut off; {began};"
        f" {_censored(judged) / max(requests, 1):.1%} unfinished at its end: censored, not dropped;"
        f" {'the queue grows' if judged.unstable else 'no queue grows'} (in the system {trend.share:+.1%}, p = {trend.p_value:.2g})"
    )


def _simulated(plan: Plan) -> str:
    if plan.period is None:
        return "nothing: this is known beforehand"
    most = max((len(candidate.trials) for candidate in plan.candidates.values()), default=0)
    runs = len(plan.question.seeds)
    more = f", close ones up to {most}" if most > runs else ""
    seeds = "the trace" if plan.question.replays else f"the same {runs} seeds of traffic{more}"
    return f"{plan.simulated_s / 3600:.2f} hours of service, {plan.simulated_requests:,} requests; each size met {seeds}"


def _clients(plan: Plan) -> str:
    """What clients did that do not wait for ever, with the answer and with one replica fewer."""
    judged = plan.chosen or next(reversed(plan.candidates.values()), None)
    if plan.question.clients is None or judged is None:
        return ""
    text = f"{plan.question.clients.describe()}; {_impatience(judged)}"
    fewer = plan.candidates.get(judged.num_replicas - 1)
    return text if fewer is None else f"{text}; with {_gpus(plan, fewer.num_replicas)} {_impatience(fewer)}"


def _impatience(candidate: Candidate) -> str:
    def mean(name: str) -> float:
        return float(np.mean([trial.attempts[name] for trial in candidate.trials if trial.attempts]))

    refused = f", {mean('rejected_share'):.1%} of attempts refused" if mean("rejected_share") else ""
    return (
        f"{mean('attempts_per_request'):.3g} attempts a request{refused}, {mean('aborted_share'):.1%} aborted,"
        f" {mean('given_up_share'):.1%} of requests given up, {mean('wasted_token_share'):.1%} of tokens emitted in vain"
    )


def _step_times(plan: Plan) -> str:
    artifact = plan.question.cost.artifact
    # On what the fit has not seen: of a profile, the worst of the grid rows left out; of a trace, its later steps.
    unseen = [row for row in artifact.error if row.judged_on.endswith("left out")]
    row = max(unseen, key=lambda row: row.median_abs) if unseen else next(iter(artifact.error), None)
    error = f"; error {row.median_abs:.1%} (median), {row.p90_abs:.1%} (p90), {row.signed_mean:+.1%} (mean), {row.judged_on}" if row else ""
    note = f". {artifact.provenance.note}" if artifact.provenance.note else ""
    return f"{artifact.engine} on {artifact.gpu}, from {artifact.provenance.source}{error}{note}".rstrip(".")


def _extrapolated(plan: Plan) -> str:
    judged = plan.chosen or next(reversed(plan.candidates.values()), None)
    if judged is None:
        return ""
    shares: dict[str, float] = {}
    for trial in judged.trials:
        for name, share in trial.outside_domain.items():
            shares[name] = shares.get(name, 0.0) + share / len(judged.trials)
    if not shares:
        return ""
    domain = plan.question.cost.artifact.domain
    parts = [
        f"{name} (measured up to {domain[name][1]:,.0f}) in {share:.1%} of the time"
        for name, share in sorted(shares.items(), key=lambda i: -i[1])
    ]
    return "above what was measured: " + ", ".join(parts)


# -- parts of sentences ------------------------------------------------------------------------------------------------------


def _gpus(plan: Plan, num_replicas: int) -> str:
    return _count(num_replicas * plan.question.gpus_per_replica)


def _count(gpus: int) -> str:
    return f"{gpus} GPU{'s' if gpus != 1 else ''}"


def _chance(chance: float) -> str:
    return "> 99.9%" if chance > 0.999 else "< 0.1%" if chance < 0.001 else f"{chance:.1%}"


def _interval(check: Check) -> str:
    low, high = check.estimate.low, check.estimate.high
    if np.isnan(low):
        return ""
    if check.name == GOODPUT:
        return f"{max(low, 0):.1%} – {min(high, 1):.1%}"
    # In the unit of the value itself.
    return f"{duration(max(low, 0))} – {duration(high)}"


def _with_interval(check: Check) -> str:
    return plus_minus(check.name, check.estimate.value, check.estimate.high - check.estimate.value)


def _censored(candidate: Candidate) -> int:
    return sum(trial.latencies["e2e"].censored for trial in candidate.trials)


def _steady_means(plan: Plan, candidate: Candidate, name: str) -> float:
    """Mean over the measured window of all runs."""
    assert plan.period is not None
    low, high = plan.period.window
    samples = [getattr(trial, name)[(low <= trial.time_s) & (trial.time_s <= high)] for trial in candidate.trials]
    joined = np.concatenate(samples)
    return float(joined.mean()) if len(joined) else 0.0


def _aligned(rows: list[list[str]]) -> list[str]:
    """Columns side by side; where the screen is too narrow, the first of what was merely observed are left out."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    asked_for = len(rows[0]) - len(OBSERVED)
    while sum(widths) + 2 * len(widths) - 2 > WIDTH and len(widths) > asked_for:
        rows = [row[:asked_for] + row[asked_for + 1 :] for row in rows]
        del widths[asked_for]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
