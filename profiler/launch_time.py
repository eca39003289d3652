"""What the thread that launches does for a step, learned from a profile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from profiler.fit import MODES, Mode, StepTimeRegressor
from profiler.profiled import Profiled

TERMS = ("one", "prefill_seqs", "decode_seqs", "tokens")
SCHEDULE_TERMS = ("one", "decode_seqs")

Coefficients = dict[str, float]


class Launching(NamedTuple):
    """Nanoseconds by term, of one graph mode: the fields of `Regime` without their `_ns`."""

    launch: Coefficients
    lead: Coefficients
    hand_over: Coefficients


def launches_in_engine(profile: Profiled) -> bool:
    """Whether the thread that schedules also launches, and goes on to the next step meanwhile."""
    return bool(profile.meta["engine"]["async_scheduling"]) and profile.meta["tensor_parallel_size"] == 1


def launch_regimes(profile: Profiled, in_service: Mapping[Mode, float] | None = None) -> dict[Mode, Launching]:
    """How each graph mode is launched; modes that were not measured are left out.

    A launch is everything that the thread does between two results: the earlier one handled, a batch chosen, its inputs prepared,
    its kernels launched. The lead is the part before the first kernel. With several GPUs other processes prepare and launch, and this
    thread hands over what it chose. Without asynchronous scheduling a launch ends with the wait for the GPU: there, it is all that the
    thread does between two steps.

    `in_service`: by graph mode, how many times as long whoever launches takes in service (`profiler.service`).
    """
    found: dict[Mode, Launching] = {}
    between = _between(profile)
    for name, mode in MODES.items():
        rows = profile.take((profile.table["graph_mode"] == int(mode)).to_numpy() & profile.table["launch_ns"].notna().to_numpy())
        if not len(rows.table):
            continue
        around = between or _fit(rows, "cpu_ns", SCHEDULE_TERMS)
        if not profile.meta["engine"]["async_scheduling"]:
            found[name] = Launching(around, around, {})
            continue
        launch = _fit(rows, "launch_ns", TERMS)
        lead = {"one": min(profile.prepare_ns or 0.0, float(rows.table["launch_ns"].median()))}
        ratio = (in_service or {}).get(name, 1.0)
        if launches_in_engine(profile):
            found[name] = Launching(_times(ratio, _sum(launch, around)), _times(ratio, _sum(around, lead)), {})
        else:
            found[name] = Launching(_times(ratio, launch), _times(ratio, lead), around)
    return found


def _between(profile: Profiled) -> Coefficients | None:
    """Read off decodes, for beside a prompt the profiler's own work lies between two steps, too; None: steps do not wait."""
    table = profile.table
    rows = profile.take(((table["kind"] == "decode") & table["between_ns"].notna()).to_numpy())
    return _fit(rows, "between_ns", SCHEDULE_TERMS) if len(rows.table) else None


def _fit(rows: Profiled, column: str, terms: tuple[str, ...]) -> Coefficients:
    model = StepTimeRegressor(terms=terms, mode_terms={}, window=1).fit(rows.matrix, rows.table[column].to_numpy(np.float64))
    return dict(zip(terms, model.coef_.tolist(), strict=True))


def _times(ratio: float, coefficients: Coefficients) -> Coefficients:
    return {term: ratio * value for term, value in coefficients.items()}


def _sum(a: Mapping[str, float], b: Mapping[str, float]) -> Coefficients:
    return {term: a.get(term, 0.0) + b.get(term, 0.0) for term in dict.fromkeys([*a, *b])}
