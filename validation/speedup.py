"""What drafts brought: a speculative trace against the same requests served without, as measured and as simulated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.errors import UserError
from simulator.request import RequestTable
from simulator.workload.base import NS_PER_S
from validation.compare import LABELS, Comparison
from validation.intervals import CONFIDENCE, STATISTICS, Interval, resampled, statistics
from validation.repeat import SAME_ARRIVALS_S, SAME_SHARE
from validation.replay import Recording

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Pair = tuple[Float64, Float64]

SPED_UP = ("e2e_s", "tpot_s")
LEAST_SHARED = 0.95
"""Of the requests of both traces: one may have been recorded for a little longer."""
ALIKE = ("gpu", "num_gpus", "model", "weights", "kv_cache_dtype", "prefix_caching", "tensor_parallel_size", "scheduling_policy")
"""What both engines have in common, beside their options. Blocks differ: drafters take memory."""


@dataclass(frozen=True)
class Gain:
    """Of one statistic of one latency: without / with drafts, above 1 where they help."""

    measured: float
    simulated: float
    interval: Interval
    """95 % interval of the error, by blocks of requests drawn anew."""

    @property
    def error(self) -> float:
        """Signed and relative."""
        return self.simulated / self.measured - 1


@dataclass(frozen=True)
class SpeedUp:
    """What drafts brought to one trace."""

    twin: str
    """The trace without."""
    requests: int
    """Served in both."""
    gains: dict[str, dict[str, Gain]]
    """By `SPED_UP` and statistic."""

    def line(self) -> str:
        """The answer in a line."""
        told = (
            f"{LABELS[name]} ×{row['mean'].measured:.2f} measured, ×{row['mean'].simulated:.2f} simulated"
            for name, row in self.gains.items()
        )
        return f"speed-up by drafts: {'; '.join(told)}"

    def text(self) -> str:
        """The answer as a table."""
        lines = [
            f"{f'speed-up over {self.twin}':<44}" + "".join(f"{name:>9}" for name in STATISTICS) + "   95 % interval of the mean's error"
        ]
        for name, row in self.gains.items():
            measured, simulated = ("".join(f"{getattr(row[s], side):>8.2f}×" for s in STATISTICS) for side in ("measured", "simulated"))
            lines += [f"{LABELS[name] + ' measured':<44}{measured}", f"{LABELS[name] + ' simulated':<44}{simulated}"]
            low, high = row["mean"].interval
            errors = "".join(f"{row[s].error:>+9.2%}" for s in STATISTICS)
            lines.append(f"{LABELS[name] + ' error':<44}{errors}   {low:+.2%} … {high:+.2%}")
        return "\n".join([*lines, f"over {self.requests:,} requests that both served"])

    def json(self) -> dict[str, Any]:
        """An object of plain numbers."""
        told = {
            name: {s: {"measured": g.measured, "simulated": g.simulated, "error": g.error, "interval": g.interval} for s, g in row.items()}
            for name, row in self.gains.items()
        }
        return {"twin": self.twin, "requests": self.requests, **told}


def find_twin(recording: Recording, known: Iterable[Recording], folders: Iterable[Path]) -> Recording | None:
    """The same requests, at the same times, before the same engine without drafts; among the known ones, else in these folders.

    None where there is none, or where this one has no drafts itself.
    """
    if recording.meta.speculative is None:
        return None
    for other in known:
        if _is_twin(recording, other):
            return other
    for folder in folders:
        try:
            other = Recording.read(folder)
        except UserError:
            continue
        if _is_twin(recording, other):
            return other
    return None


def _is_twin(recording: Recording, other: Recording) -> bool:
    one, two = recording.meta, other.meta
    if two.speculative is not None or any(getattr(one, name) != getattr(two, name) for name in ALIKE):
        return False
    if one.engine.model_dump(exclude={"num_gpu_blocks"}) != two.engine.model_dump(exclude={"num_gpu_blocks"}):
        return False
    if (one.num_gpu_blocks_override is None) != (two.num_gpu_blocks_override is None):
        return False
    return len(shared_rows(recording.requests, other.requests)[0]) > 0


def shared_rows(one: RequestTable, other: RequestTable) -> tuple[Int64, Int64]:
    """int64[m] twice: rows of the requests that are in both, in the order of arrival; empty where the traces are of other traffic."""
    none = np.zeros(0, np.int64)
    _, here, there = np.intersect1d(one.request_id, other.request_id, return_indices=True)
    if len(here) < LEAST_SHARED * max(len(one), len(other)):
        return none, none
    order = np.argsort(here)
    here, there = here[order], there[order]
    if any((getattr(one, name)[here] != getattr(other, name)[there]).any() for name in ("prompt_tokens", "output_tokens")):
        return none, none
    # Where a trace's clock begins is the recorder's affair.
    apart_ns = (one.arrival_ns[here] - one.arrival_ns[here[0]]) - (other.arrival_ns[there] - other.arrival_ns[there[0]])
    together = float(np.quantile(np.abs(apart_ns), SAME_SHARE)) < SAME_ARRIVALS_S * NS_PER_S
    return (here, there) if together else (none, none)


def speed_up(with_: Comparison, without: Comparison) -> SpeedUp:
    """Of a speculative trace against its twin, over the requests of more than one token that ended in both."""
    requests = with_.replay.result.requests
    here, there = shared_rows(requests, without.replay.result.requests)
    ended = np.isfinite(with_.measured["e2e_s"][here]) & np.isfinite(without.measured["e2e_s"][there])
    counted = ended & (requests.output_tokens[here] > 1)
    here, there = here[counted], there[counted]
    rows = resampled(requests.arrival_ns[here] / NS_PER_S, without.measured["e2e_s"][there])
    gains = {}
    for name in SPED_UP:
        measured = without.measured[name][there], with_.measured[name][here]
        gains[name] = _gains(measured, (without.simulated[name][there], with_.simulated[name][here]), rows)
    return SpeedUp(without.replay.recording.meta.name, len(here), gains)


def _gains(measured: Pair, simulated: Pair, rows: Int64) -> dict[str, Gain]:
    """By statistic, of latencies (without, with drafts), float64[n] each; `rows`: requests drawn anew."""
    found = [statistics(without) / statistics(with_) for without, with_ in (measured, simulated)]
    drawn = [statistics(without[rows]) / statistics(with_[rows]) for without, with_ in (measured, simulated)]
    ends = np.quantile(drawn[1] / drawn[0] - 1, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=-1)
    columns = zip(STATISTICS, *np.concatenate([found, ends]).tolist(), strict=True)
    return {name: Gain(of_measured, of_simulated, (low, high)) for name, of_measured, of_simulated, low, high in columns}
