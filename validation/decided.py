"""Decisions that were measured on a GPU: the rate that was predicted before, the rate that was found, and what today's simulator says.

A folder of `validation/decisions` is what `python -m validation decision` wrote (decision.json), the recorded runs in `traces`, of which
only requests.csv.gz and meta.json are kept, and the verdict (result.json).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.workload import OpenLoop, Workload, read_trace
from validation.decision import PLAN, TRACES, Edge, bound, config_of, edge, error, judged, read, slos_of, unfinished
from validation.intervals import Interval
from validation.protocol import Protocol, Run, measured

DECISIONS = Path(__file__).resolve().parent / "decisions"

VISIBLE = 0.005
"""Today's prediction is told where it has moved by so much."""


@dataclass(frozen=True)
class Decided:
    """The highest rate within the SLOs of one engine."""

    name: str
    limits: str
    """In words."""
    predicted: Edge
    """Before anything was recorded, of the requests that were; requests/s, as all rates."""
    measured: Edge
    interval: Interval
    today: Edge
    """Of the recorded requests, by the simulator and the cost model as they are; runs that were cut are simulated to the cut."""
    unfinished: str
    """In words, where runs were cut."""

    @property
    def error(self) -> float:
        """Signed and relative, of what was predicted before."""
        return self.predicted.rate / self.measured.rate - 1

    def line(self) -> str:
        """The decision in a line."""
        low, high = self.interval
        found = f"measured {self.measured.bound}{self.measured.rate:.3g} requests/s (95 % interval {low:.3g} to {high:.3g})"
        said = f"predicted {self.predicted.bound}{self.predicted.rate:.3g}"
        told = f"highest rate within {self.limits}: {said}, {found}, {error(self.predicted, self.measured)}"
        if abs(self.today.rate / self.predicted.rate - 1) >= VISIBLE:
            told += f"; predicted today {self.today.bound}{self.today.rate:.3g}, {error(self.today, self.measured)}"
        return told + self.unfinished


def decided(folder: Path) -> Decided:
    """Judges a recorded decision anew.

    Raises:
        UserError: there is no prediction, or there are no runs.
    """
    document = read(folder)
    result = judged(folder, document)
    return Decided(
        name=folder.name,
        limits=" and ".join(f"{slo.name} ≤ {1e3 * slo.limit_s:g} ms" for slo in slos_of(document)),
        predicted=Edge(result["predicted_rate_of_these_requests"], bound(result["predicted_bound"])),
        measured=Edge(result["measured_rate"], bound(result["bound"])),
        interval=result["interval"],
        today=_today(folder, document, result["runs"]),
        unfinished=unfinished(result["runs"]),
    )


def all_decided(root: Path = DECISIONS) -> list[Decided]:
    """Those that are shipped."""
    return [decided(path.parent) for path in sorted(root.glob(f"*/{PLAN}"))]


def _today(folder: Path, document: dict[str, Any], runs: list[dict[str, Any]]) -> Edge:
    protocol = Protocol(config_of(document), document["measure_s"], document["warmup_s"])
    simulated = []
    for run in runs:
        trace, window_s = folder / TRACES / run["name"], tuple(run["window_s"])
        requests = Workload(read_trace(trace, "measured").requests, OpenLoop())
        simulated.append(protocol.simulated(Run(run["rate"], requests, window_s), measured(trace, window_s).cut))
    return edge([run["rate"] for run in runs], [each.excess(protocol.slos) for each in simulated])
