"""A trace with all that is said of it, and the table of all traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import median
from typing import Any

from validation.compare import LABELS, Comparison
from validation.intervals import STATISTICS
from validation.limits import NEAR, Verdict, judge, limits_cells, limits_header, limits_legend
from validation.luck import Luck
from validation.repeat import Repeatability
from validation.speedup import SpeedUp
from validation.split import Split
from validation.table import as_json, as_text, percent

IN_SAMPLE = "*"
COLUMNS = (
    *(("E2E", "e2e_s", statistic) for statistic in ("mean", "p50", "p90", "p99")),
    *(("TPOT", "tpot_s", statistic) for statistic in ("mean", "p50", "p90", "p99")),
    *(("TTFT", "ttft_s", statistic) for statistic in ("mean", "p50", "p99")),
)
REPEATED = (("E2E", "e2e_s"), ("TPOT", "tpot_s"), ("TTFT", "ttft_s"))


@dataclass(frozen=True, eq=False)
class Judged:
    """One trace."""

    comparison: Comparison
    split: Split
    repeatability: Repeatability | None
    speed_up: SpeedUp | None = None
    """Of a trace with drafts that has a twin without."""
    luck: Luck | None = None
    """Where several replays were asked for."""

    @property
    def name(self) -> str:
        return self.comparison.replay.recording.meta.name

    @property
    def marked_name(self) -> str:
        """With a mark for what a fit has seen of the trace."""
        return self.name + (IN_SAMPLE if self.comparison.replay.in_sample else "")

    @cached_property
    def verdict(self) -> Verdict:
        """The trace against the limits."""
        return judge(self.comparison, self.repeatability)

    def json(self) -> dict[str, Any]:
        """The comparison's object, with where the error comes from and what the GPU itself repeats."""
        return {
            **as_json(self.comparison),
            "split": {
                "cost_model": asdict(self.split.cost_model) if self.split.cost_model else None,
                "scheduler": asdict(self.split.scheduler) if self.split.scheduler else None,
                "why_not": self.split.why_not or None,
            },
            "repeatability": self.repeatability,
            "limits": self.verdict.json(),
            "speed_up": self.speed_up.json() if self.speed_up else None,
            "replays": self.luck.json() if self.luck else None,
        }

    def text(self) -> str:
        """The comparison's table, with the split by source below."""
        lines = [
            as_text(self.comparison),
            *self._repeat_lines(),
            *self._way_lines(),
            *(["", self.luck.text()] if self.luck else []),
            "",
            "where the error comes from",
            *self._split_lines(),
        ]
        return "\n".join([*lines, "", self.speed_up.text()] if self.speed_up else lines)

    def _repeat_lines(self) -> list[str]:
        if self.repeatability is None:
            return ["repeatability: this workload was measured once"]
        lines = ["", f"{'measured again: |a / b − 1|':<28}" + "".join(f"{name:>9}" for name in STATISTICS)]
        for name, label in LABELS.items():
            if row := self.repeatability.get(name):
                lines.append(f"{label:<28}" + "".join(f"{row[each]:>9.2%}" if each in row else f"{'–':>9}" for each in STATISTICS))
        if row := self.repeatability.get("preemptions"):
            lines.append(f"{'preemptions':<28}{row['number']:>9.2%}")
        return [*lines, ""]

    def _way_lines(self) -> list[str]:
        """What lies between client and engine, where the recorder saw it: more of it through a server."""
        meta, modelled = self.comparison.replay.recording.meta, self.comparison.replay.result.scenario.cost.artifact.overheads
        if meta.overheads is None:
            return []
        ways = [f"{name} {1e3 * meta.overheads[f'{name}_s']:.1f} ms" for name in ("ingress", "egress")]
        taken = f"the cost model has {modelled.ingress_ns / 1e6:.1f} and {modelled.egress_ns / 1e6:.1f} ms"
        waited = "" if "to_scheduler_s" in meta.overheads else ", the wait for the next step included"
        return [f"between client and engine: {', '.join(ways)} (medians{waited}; {taken}); {meta.client.partition(';')[0]}"]

    def _split_lines(self) -> list[str]:
        lines = []
        if batches := self.split.cost_model:
            windows = (
                f"windows of 6 steps {percent(batches.all_steps.signed_sum)} in sum, median |error| {batches.all_steps.median_abs:.2%}"
            )
            if batches.with_prefill:
                windows += f" (with a prompt {percent(batches.with_prefill.signed_sum)}, {batches.with_prefill.median_abs:.2%})"
            if batches.single_steps:
                windows += f"; single decode steps away from prompts {batches.single_steps.median_abs:.2%}"
            lines.append(f"  cost model on the measured batches     a token's time {percent(batches.token_time)}; {windows}")
        if scheduler := self.split.scheduler:
            told = ", ".join(f"{label} {percent(scheduler.errors[name]['mean'])}" for label, name in REPEATED)
            same = f"{scheduler.same_composition:.1%} of the steps as measured"
            lines.append(f"  scheduler on the measured durations    {told} in the mean; {same}{_preempted(scheduler.preemptions)}")
        errors = self.comparison.rows
        lines.append(
            "  both (the table above)                 " + ", ".join(f"{n} {percent(errors[k].errors['mean'])}" for n, k in REPEATED)
        )
        return [*lines, f"  {self.split.why_not}"] if self.split.why_not else lines


def _preempted(found: Any) -> str:
    if not found.simulated and not found.measured:
        return ""
    counts = f"; preemptions {found.simulated} for {found.measured}"
    return counts if found.both is None else f"{counts}, {found.both} of {found.both + found.only_measured} preempted requests the same"


def header() -> tuple[str, ...]:
    """Of the table of all traces."""
    return (
        "trace",
        "requests",
        *(f"{label} {statistic}" for label, _, statistic in COLUMNS),
        "|E2E, TPOT|",
        "repeats",
        "preempted",
        "blocks",
    )


def cells(judged: Judged) -> tuple[str, ...]:
    """A trace's row: signed relative errors; `|E2E, TPOT|` is the mean of the absolute ones of both, `repeats` what `legend` says."""
    comparison = judged.comparison
    replay = comparison.replay
    errors = [comparison.rows[name].errors[statistic] if name in comparison.rows else None for _, name, statistic in COLUMNS]
    again = judged.repeatability
    repeats = f"{again['e2e_s']['mean']:.1%}, {again['tpot_s']['mean']:.1%}" if again else "–"
    counts = comparison.preemptions
    blocks = comparison.totals.get("num_gpu_blocks")
    return (
        judged.marked_name,
        f"{len(replay.result.requests):,}",
        *("–" if error is None else f"{error:+.1%}" for error in errors),
        f"{comparison.average_abs:.2%}",
        repeats,
        f"{counts.simulated} for {'?' if counts.measured is None else counts.measured}",
        "set" if blocks is None else f"{blocks[0] / blocks[1] - 1:+.1%}",
    )


def overview(judged: Sequence[Judged], refused: Sequence[str]) -> str:
    """The table of all traces as text, their errors in short above, what could not be replayed below."""
    lines = _aligned([header(), *(cells(each) for each in judged)])
    above = [summary(judged), "", "simulated / measured − 1", ""]
    return "\n".join([*above, *lines, "", *legend(judged), *(f"not replayed: {reason}" for reason in refused)])


def summary(judged: Sequence[Judged]) -> str:
    """How far off they are all together, in a line."""
    means = [(each.comparison.rows["e2e_s"].errors["mean"], each.name) for each in judged if "e2e_s" in each.comparison.rows]
    known = [(error, name) for error, name in means if error is not None]
    if not known:
        return f"{len(judged)} traces, of none of which E2E is known"
    farthest, far = max(known, key=lambda each: abs(each[0]))
    within = sum(abs(error) <= NEAR for error, _ in known)
    typical = median(each.comparison.average_abs for each in judged)
    counts = [each.comparison.preemptions for each in judged if each.comparison.preemptions.measured is not None]
    simulated, measured = sum(each.simulated for each in counts), sum(each.measured or 0 for each in counts)
    return (
        f"E2E within {NEAR:.0%} in the mean in {within} of {len(known)} traces, at most {farthest:+.1%} off ({far});"
        f" |E2E, TPOT| {typical:.2%} (median); {simulated:,} preemptions for {measured:,}"
    )


def limits(judged: Sequence[Judged]) -> str:
    """Every trace against the limits, as text."""
    lines = _aligned([limits_header(), *(limits_cells(each.marked_name, each.verdict) for each in judged)])
    return "\n".join([limits_headline(judged), "", *lines, "", *limits_legend()])


def limits_headline(judged: Sequence[Judged]) -> str:
    """How many traces meet them."""
    return f"against the limits: {sum(each.verdict.met for each in judged)} of {len(judged)} traces meet them all"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        row[0].ljust(widths[0]) + "".join(cell.rjust(width + 2) for cell, width in zip(row[1:], widths[1:], strict=True)) for row in rows
    ]


def legend(judged: Sequence[Judged]) -> list[str]:
    """What the marks mean, as far as they occur."""
    told = ["repeats: E2E and TPOT of the same requests measured again, |a / b − 1| of the means; –: measured once"]
    if any(each.comparison.replay.in_sample for each in judged):
        told.append(f"{IN_SAMPLE} in sample: the cost model was fitted to this very trace")
    told += [f"{each.name}: {each.speed_up.line()}" for each in judged if each.speed_up]
    told += [f"{each.name}: {each.luck.line()}" for each in judged if each.luck]
    return told
