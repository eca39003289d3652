"""How far the replay's own chance moves the errors: the same trace, replayed with other draws.

A launch takes longer or shorter by chance, and over capacity a request that is preempted a step sooner changes who is preempted next. The
errors are those of one replay all the same, since it is one prediction that is written, and everyone can compute them from it; what other
replays would have said stands beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from validation.compare import LABELS, PER_REQUEST, Comparison, relative
from validation.intervals import STATISTICS
from validation.replay import Replay, quantiles, tpot, until_cut

Range = tuple[float, float]


@dataclass(frozen=True)
class Luck:
    """Lowest and highest of several replays, the one that is compared among them."""

    replays: int
    errors: dict[str, dict[str, Range]]
    """By `PER_REQUEST` and statistic."""
    preemptions: tuple[int, int]

    def line(self) -> str:
        """The means in a line."""
        told = (f"{LABELS[name]} {_percent(row['mean'])}" for name, row in self.errors.items())
        return f"means of {self.replays} replays: {', '.join(told)}{self._preempted()}"

    def text(self) -> str:
        """All of it as a table."""
        lines = [f"{f'{self.replays} replays: lowest … highest':<28}" + "".join(f"{name:>20}" for name in STATISTICS)]
        for name, row in self.errors.items():
            lines.append(f"{LABELS[name]:<28}" + "".join(f"{_percent(row[each]):>20}" for each in STATISTICS))
        return "\n".join(lines) + (f"\n{self._preempted().removeprefix('; ')}" if self._preempted() else "")

    def json(self) -> dict[str, Any]:
        """An object of plain numbers."""
        return {"number": self.replays, "errors": self.errors, "preemptions": self.preemptions}

    def _preempted(self) -> str:
        low, high = self.preemptions
        return f"; preemptions {low:,} … {high:,}" if high else ""


def luck(comparison: Comparison, replays: int) -> Luck | None:
    """Replays the trace with the seeds that follow; None of one replay."""
    if replays < 2:
        return None
    first = comparison.replay
    scenario, cut_s = first.result.scenario, first.recording.meta.cut_s
    drawn = [first] + [
        replace(first, result=whole, until_cut=cut)
        for whole, cut in (until_cut(replace(scenario, seed=scenario.seed + draw), cut_s) for draw in range(1, replays))
    ]
    errors = [_errors(each, comparison) for each in drawn]
    ranges = {name: {s: (min(e[name][s] for e in errors), max(e[name][s] for e in errors)) for s in STATISTICS} for name in errors[0]}
    preemptions = [int(each.until_cut.preemptions.sum()) for each in drawn]
    return Luck(replays, ranges, (min(preemptions), max(preemptions)))


def _errors(replay: Replay, comparison: Comparison) -> dict[str, dict[str, float]]:
    columns = replay.columns()
    columns["tpot_s"] = tpot(columns["ttft_s"], columns["e2e_s"], replay.result.requests.output_tokens)
    found = {}
    for name in PER_REQUEST:
        both = np.isfinite(columns[name]) & np.isfinite(comparison.measured[name])
        simulated, measured = quantiles(columns[name][both]), quantiles(comparison.measured[name][both])
        if simulated and measured:
            found[name] = {s: relative(simulated[s], measured[s]) or 0.0 for s in STATISTICS}
    return found


def _percent(ends: Range) -> str:
    return f"{ends[0]:+.2%} … {ends[1]:+.2%}"
