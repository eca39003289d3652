"""Holds a replay against what was measured: signed relative errors, simulated / measured − 1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.errors import UserError
from simulator.workload.base import NS_PER_S
from validation.replay import STATISTICS, Replay, duration, quantiles, shown, tpot

Float64 = NDArray[np.float64]

LATENCIES = ("ttft_s", "e2e_s")
OPTIONAL_LATENCIES = ("itl_p50_s", "itl_p99_s", "itl_max_s")
LABELS = {
    "e2e_s": "E2E",
    "tpot_s": "TPOT",
    "ttft_s": "TTFT",
    "itl_p50_s": "ITL, median of a request",
    "itl_p99_s": "ITL, p99 of a request",
    "itl_max_s": "ITL, longest of a request",
    "kv_usage": "KV usage over time",
}
"""Rows of the table in their order."""


@dataclass(frozen=True)
class Row:
    """One quantity: its statistics as measured, and their errors. None: not measured, or 0 was."""

    measured: dict[str, float]
    errors: dict[str, float | None]


@dataclass(frozen=True)
class Comparison:
    """All errors of one trace."""

    replay: Replay
    rows: dict[str, Row]
    """By the keys of `LABELS`, as far as they were measured."""
    totals: dict[str, tuple[float, float]]
    """(simulated, measured) of `duration_s`, `output_tokens_per_s` and, unless it was set by hand, `num_gpu_blocks`."""
    mean_abs_e2e_error: float
    """Mean over requests of |simulated / measured − 1|."""
    preemptions: tuple[int, int | None]
    """(simulated, measured); None: the trace has no steps."""


def compare(replay: Replay) -> Comparison:
    """Reads the measured latencies and compares.

    Raises:
        UserError: the trace has none.
    """
    recording, result = replay.recording, replay.result
    measured = _measured_requests(recording.folder, result.requests.request_id)
    simulated = {name: column for name, column in replay.columns().items() if name in LABELS}
    output_tokens = result.requests.output_tokens
    for columns in (measured, simulated):
        columns["tpot_s"] = tpot(columns["ttft_s"], columns["e2e_s"], output_tokens)
    steps = _measured_steps(recording.folder)
    if steps is not None and len(result.timeline.time_ns):
        measured["kv_usage"], simulated["kv_usage"] = _kv_usage(replay, steps)
    rows = {name: row for name in LABELS if name in measured and (row := _row(simulated[name], measured[name]))}
    arrival_s = result.requests.arrival_ns / NS_PER_S
    simulated_s, measured_s = duration(arrival_s, simulated["e2e_s"]), duration(arrival_s, measured["e2e_s"])
    tokens = float(output_tokens.sum())
    totals = {"duration_s": (simulated_s, measured_s), "output_tokens_per_s": (tokens / simulated_s, tokens / measured_s)}
    if recording.meta.num_gpu_blocks_override is None:
        totals["num_gpu_blocks"] = (result.scenario.engine.num_gpu_blocks, recording.meta.engine.num_gpu_blocks)
    return Comparison(
        replay=replay,
        rows=rows,
        totals=totals,
        mean_abs_e2e_error=float(np.nanmean(np.abs(simulated["e2e_s"] / measured["e2e_s"] - 1))),
        preemptions=(int(result.preemptions.sum()), None if steps is None else int(steps["preempted"].sum())),
    )


def _measured_requests(folder: Path, request_id: NDArray[np.str_]) -> dict[str, Float64]:
    """Measured columns in the simulation's order of requests, joined on `request_id`; unreadable numbers are NaN."""
    path = folder / "requests.csv.gz"
    frame = pd.read_csv(path, dtype={"request_id": str}).set_index("request_id")
    missing = [name for name in LATENCIES if name not in frame.columns]
    if missing:
        raise UserError(f"{path}: column {missing[0]} is missing: nothing to compare; `python -m validation predict` needs no latencies")
    frame = frame.loc[request_id.tolist()]
    columns = [name for name in (*LATENCIES, *OPTIONAL_LATENCIES) if name in frame.columns]
    numbers = {name: pd.to_numeric(frame[name], errors="coerce").to_numpy(np.float64) for name in columns}
    for name in LATENCIES:
        wrong = ~(numbers[name] > 0)
        if wrong.any():
            raise UserError(f"{path}: {name} of request {request_id[int(wrong.argmax())]} is not a positive number")
    return numbers


def _measured_steps(folder: Path) -> pd.DataFrame | None:
    path = folder / "steps.csv.gz"
    if not path.is_file():
        return None
    try:
        steps = pd.read_csv(path)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    missing = [name for name in ("schedule_s", "kv_usage", "preempted") if name not in steps.columns]
    if missing:
        raise UserError(f"{path}: column {missing[0]} is missing")
    return steps


def _kv_usage(replay: Replay, steps: pd.DataFrame) -> tuple[Float64, Float64]:
    """(measured, simulated) share of the pool in use, at the simulation's samples that lie within both."""
    timeline, engine = replay.result.timeline, replay.result.scenario.engine
    time_s, schedule_s = timeline.time_ns / NS_PER_S, steps["schedule_s"].to_numpy(np.float64)
    within = (time_s >= schedule_s[0]) & (time_s <= schedule_s[-1])
    latest = np.searchsorted(schedule_s, time_s[within], side="right") - 1
    simulated = timeline.kv_blocks[within].mean(axis=1) / engine.usable_blocks
    return steps["kv_usage"].to_numpy(np.float64)[latest], simulated


def _row(simulated: Float64, measured: Float64) -> Row | None:
    both = np.isfinite(simulated) & np.isfinite(measured)
    of_measured, of_simulated = quantiles(measured[both]), quantiles(simulated[both])
    if of_measured is None or of_simulated is None:
        return None
    return Row(of_measured, {name: relative(of_simulated[name], of_measured[name]) for name in STATISTICS})


def relative(simulated: float, measured: float) -> float | None:
    """Signed relative error; None where 0 was measured."""
    return simulated / measured - 1 if measured else None


def as_json(comparison: Comparison) -> dict[str, Any]:
    """One trace's errors, signed and relative."""
    simulated, measured = comparison.preemptions
    totals = {name: relative(*pair) for name, pair in comparison.totals.items()}
    return {
        "trace": comparison.replay.recording.meta.name,
        "cost_model": shown(comparison.replay.cost_model),
        "in_sample": comparison.replay.in_sample,
        "requests": len(comparison.replay.result.requests),
        "errors": {
            **{name: row.errors for name, row in comparison.rows.items()},
            "duration_s": totals["duration_s"],
            "output_tokens_per_s": totals["output_tokens_per_s"],
            "num_gpu_blocks": totals.get("num_gpu_blocks"),
            "e2e_s_mean_abs": comparison.mean_abs_e2e_error,
        },
        "preemptions": {"measured": measured, "simulated": simulated},
    }


def as_text(comparison: Comparison) -> str:
    """The same as a table."""
    replay = comparison.replay
    sample = "in-sample: the cost model was fitted to this very trace" if replay.in_sample else "the cost model never saw this trace"
    lines = [
        f"{replay.recording.meta.name}: {len(replay.result.requests):,} requests",
        f"cost model {shown(replay.cost_model)} ({sample})",
        "",
        f"{'simulated / measured − 1':<28}" + "".join(f"{name:>9}" for name in STATISTICS) + f"{'measured mean':>17}",
    ]
    for name, row in comparison.rows.items():
        lines.append(f"{LABELS[name]:<28}" + "".join(f"{percent(row.errors[s]):>9}" for s in STATISTICS) + f"{_value(name, row):>17}")
    units = {"duration_s": ("duration", "s"), "output_tokens_per_s": ("output throughput", "tokens/s"), "num_gpu_blocks": ("KV blocks", "")}
    for name, (simulated, measured) in comparison.totals.items():
        label, unit = units[name]
        lines.append(f"{label:<28}{percent(relative(simulated, measured)):>9}{'':27}{f'{measured:,.0f} {unit}'.strip():>17}")
    lines.append(f"{'E2E, mean |error|':<28}{comparison.mean_abs_e2e_error:>9.2%}")
    preempted, measured_preempted = comparison.preemptions
    recorded = "not recorded" if measured_preempted is None else f"{measured_preempted:,}"
    lines.append(f"{'preemptions':<28}{preempted:>9,}{'':27}{recorded:>17}")
    return "\n".join(lines)


def percent(error: float | None) -> str:
    """+1.23 %, without a space."""
    return "–" if error is None else f"{error:+.2%}"


def _value(name: str, row: Row) -> str:
    mean = row.measured["mean"]
    if name == "kv_usage":
        return f"{mean:.1%}"
    return f"{mean:,.2f} s" if mean >= 1 else f"{mean * 1000:,.2f} ms"
