"""`compare(path)`: a service and variants of it under the same traffic, seed by seed, and what that says of published findings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import nan
from pathlib import Path

from simulator.artifacts.accuracy import refusal, score_of
from simulator.artifacts.domain import outside_domain
from simulator.comparing.comparison import CompareConfig
from simulator.comparing.quantity import Quantity, quantity
from simulator.comparing.verdict import Claim, Verdict, verdict
from simulator.compose import merged
from simulator.config import Config, load
from simulator.errors import NotMeasuredError, UserError
from simulator.planning.interval import Interval
from simulator.planning.pool import Pool
from simulator.reporting.summary import summary
from simulator.simulate import simulate
from simulator.workload import ReplaySpec

MOSTLY = 0.5
"""A run that spends this share of its time beyond what was measured says nothing about a published finding."""


@dataclass(frozen=True, eq=False)
class Variant:
    """One of the services compared."""

    name: str
    overrides: tuple[str, ...]
    """Of the baseline's configuration."""
    config: Config | None
    missing: str = ""
    """Why there is no configuration: nothing was measured for it, or a plan refuses its loss of accuracy."""


@dataclass(frozen=True)
class Row:
    """One metric of one variant."""

    variant: str
    quantity: Quantity
    level: Interval
    """Of the variant itself, over the seeds."""
    ratio: Interval
    """To the baseline; `difference` likewise. NaN for the baseline itself."""
    difference: Interval

    @property
    def change(self) -> Interval:
        """As the metric is compared: the ratio, or for shares the difference."""
        return self.ratio if self.quantity.relative else self.difference


@dataclass(frozen=True)
class Judged:
    """A published finding and what the comparison says of it."""

    claim: Claim
    found: Interval
    verdict: Verdict


@dataclass(frozen=True, eq=False)
class Comparison:
    """The answer and its evidence."""

    config: Config
    """The baseline's."""
    options: CompareConfig
    variants: list[Variant]
    """The baseline first."""
    seeds: range
    rows: list[Row]
    judged: list[Judged]
    """In the order of the claims."""
    runs: dict[tuple[str, int], dict[str, float]]
    """Every figure, by (variant, seed) and metric; plans are not in it."""
    outside: dict[str, dict[str, float]]
    """By variant: share of the time beyond what its cost model was measured for, by feature."""
    traffic: dict[str, str]
    """By variant: what was served, in a line."""

    def row(self, variant: str, metric: str) -> Row:
        """The row of that variant and metric."""
        return next(row for row in self.rows if (row.variant, row.quantity.name) == (variant, metric))


@dataclass(frozen=True)
class _Run:
    values: dict[str, float]
    outside: dict[str, float]
    traffic: str


def compare(path: str | Path, overrides: list[str] | None = None) -> Comparison:
    """Simulates the configuration in the file `path` and its `compare.variants`; the same whatever the number of processes.

    Raises:
        UserError: a configuration makes no sense. That a variant was not measured is an answer, not an error.
    """
    overrides = overrides or []
    config = load(path, overrides)
    options = config.compare
    if options is None:
        raise UserError(f"{path}: command: compare needs compare.variants and compare.metrics")
    variants = [_variant(options, path, overrides, name, changes) for name, changes in {options.baseline: [], **options.variants}.items()]
    seeds = range(config.seed, config.seed + (1 if isinstance(config.workload, ReplaySpec) else options.num_seeds))
    runs = _simulate(options, variants, seeds)
    others = _others(options, variants)
    rows = [_row(options, variant, name, seeds, runs, others) for variant in variants for name in options.metrics]
    outside = {variant.name: _mean([runs[variant.name, seed].outside for seed in seeds]) for variant in _simulated(variants, runs)}
    traffic = {variant.name: runs[variant.name, seeds[0]].traffic for variant in _simulated(variants, runs)}
    found = Comparison(config, options, variants, seeds, rows, [], {task: run.values for task, run in runs.items()}, outside, traffic)
    found.judged.extend(_judge(found, claim) for claim in options.claims)
    return found


def _variant(options: CompareConfig, path: str | Path, overrides: list[str], name: str, changes: list[str]) -> Variant:
    try:
        config = load(path, merged(overrides, changes))
        if any(not metric.startswith("accuracy.") for metric in options.metrics):
            config.load_cost()
    except NotMeasuredError as error:
        return Variant(name, tuple(changes), None, str(error))
    except UserError as error:
        raise UserError(f"compare.variants.{name}: {error}" if changes else str(error)) from None
    refused = refusal(config) if "gpus" in options.metrics else ""
    return Variant(name, tuple(changes), None if refused else config, refused)


def _simulated(variants: list[Variant], runs: dict[tuple[str, int], _Run]) -> list[Variant]:
    simulated = {name for name, _ in runs}
    return [variant for variant in variants if variant.name in simulated]


def _simulate(options: CompareConfig, variants: list[Variant], seeds: range) -> dict[tuple[str, int], _Run]:
    if not any(quantity(name).key for name in options.metrics):
        return {}
    configs = {variant.name: variant.config for variant in variants if variant.config is not None}
    tasks = [(name, seed) for name in configs for seed in seeds]
    with Pool(partial(_run, options, configs), options.workers, "simulating") as pool:
        return dict(zip(tasks, pool.map(tasks), strict=True))


def _run(options: CompareConfig, configs: dict[str, Config], task: tuple[str, int]) -> _Run:
    name, seed = task
    config = configs[name].model_copy(update={"seed": seed})
    scenario = config.scenario()
    result = simulate(scenario)
    itl = any(metric.startswith("itl") for metric in options.metrics)
    figures = summary(result, config.slo, options.window_s, itl=itl)
    values = {metric: quantity(metric).read(figures) for metric in options.metrics if quantity(metric).key}
    return _Run(values, outside_domain(result, options.window_s), scenario.workload.description.rpartition("; ")[0])


def _others(options: CompareConfig, variants: list[Variant]) -> dict[tuple[str, str], Interval]:
    """What runs do not say, by (variant, metric): GPUs that a plan finds (NaN: no number will do), published accuracy (NaN: unknown)."""
    found = {}
    for variant in variants:
        for metric in options.metrics:
            if variant.config is None or quantity(metric).key:
                continue
            if metric == "gpus":
                found[variant.name, metric] = _gpus(variant.config)
            else:
                score = score_of(variant.config, metric.removeprefix("accuracy."))
                found[variant.name, metric] = Interval(nan) if score is None else score.interval(options.confidence)
    return found


def _gpus(config: Config) -> Interval:
    from simulator.plan import plan

    answer = plan(config)
    low, high = answer.interval or (nan, nan)
    return Interval(nan if answer.gpus is None else answer.gpus, low, nan if high is None else high)


def _row(
    options: CompareConfig,
    variant: Variant,
    metric: str,
    seeds: range,
    runs: dict[tuple[str, int], _Run],
    others: dict[tuple[str, str], Interval],
) -> Row:
    known, nothing, confidence = quantity(metric), Interval(nan), options.confidence
    if not known.key:
        level, base = (others.get((name, metric), nothing) for name in (variant.name, options.baseline))
        ratio, difference = level.over(base), level.minus(base)
    elif variant.config is None:
        level = ratio = difference = nothing
    else:
        values = [runs[variant.name, seed].values[metric] for seed in seeds]
        base_values = [runs[options.baseline, seed].values[metric] if (options.baseline, seed) in runs else nan for seed in seeds]
        level = Interval.of_mean(values, confidence)
        level = level.within(0.0, 1.0) if known.kind == "share" else level
        ratio = Interval.of_ratios(values, base_values, confidence)
        difference = Interval.of_differences(values, base_values, confidence)
    is_baseline = variant.name == options.baseline
    return Row(variant.name, known, level, nothing if is_baseline else ratio, nothing if is_baseline else difference)


def _judge(comparison: Comparison, claim: Claim) -> Judged:
    row = comparison.row(claim.variant, claim.metric)
    found = {"ratio": row.ratio, "difference": row.difference, "value": row.level}[claim.compared_as]
    return Judged(claim, found, verdict(claim, found, hindrance=_hindrance(comparison, claim.variant)))


def _hindrance(comparison: Comparison, name: str) -> str:
    """Why nothing can be said of a variant; empty if it can."""
    missing = [variant.name for variant in comparison.variants if variant.missing and variant.name in {name, comparison.options.baseline}]
    if missing:
        return f"{missing[-1]} is left out"
    for of in dict.fromkeys((name, comparison.options.baseline)):
        feature, share = max(comparison.outside.get(of, {}).items(), key=lambda item: item[1], default=("", 0.0))
        if share >= MOSTLY:
            return f"{of} is beyond what was measured in {share:.0%} of the time ({feature})"
    return ""


def _mean(shares: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for share in shares for name in share)
    return {name: sum(share.get(name, 0.0) for share in shares) / len(shares) for name in names}
