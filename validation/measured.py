"""What was measured: a trace's latencies and steps. Read after the prediction is written, by the comparison alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.errors import UserError

Float64 = NDArray[np.float64]

LATENCIES = ("ttft_s", "e2e_s")
OPTIONAL_COLUMNS = ("itl_p50_s", "itl_p99_s", "itl_max_s", "preemptions", "received_tokens", "cached_tokens")
STEP_COLUMNS = (
    *("schedule_s", "update_s", "prefill_seqs", "prefill_tokens", "prefill_context_tokens"),
    *("decode_seqs", "decode_context_tokens", "kv_usage", "running", "waiting", "preempted"),
)


def measured_requests(folder: Path, request_id: NDArray[np.str_], cut: bool) -> dict[str, Float64]:
    """Measured columns float64[n] in the given order of requests, joined on `request_id`; unreadable numbers are NaN.

    Where the trace was `cut`, requests without an E2E had not ended then, and all their latencies are NaN; `first_token_s` is the TTFT of
    those, too, that had begun to answer.

    Raises:
        UserError: a latency is missing, or no request ended.
    """
    path = folder / "requests.csv.gz"
    frame = pd.read_csv(path, dtype={"request_id": str}).set_index("request_id")
    missing = [name for name in LATENCIES if name not in frame.columns]
    if missing:
        raise UserError(f"{path}: column {missing[0]} is missing: nothing to compare; `python -m validation predict` needs no latencies")
    frame = frame.loc[request_id.tolist()]
    columns = [name for name in (*LATENCIES, *OPTIONAL_COLUMNS) if name in frame.columns]
    numbers = {name: pd.to_numeric(frame[name], errors="coerce").to_numpy(np.float64) for name in columns}
    ended = frame["e2e_s"].notna().to_numpy() if cut else np.ones(len(frame), np.bool_)
    if not ended.any():
        raise UserError(f"{path}: no request ended before the trace was cut: nothing to compare")
    for name in LATENCIES:
        wrong = ended & ~(numbers[name] > 0)
        if wrong.any():
            raise UserError(f"{path}: {name} of request {request_id[int(wrong.argmax())]} is not a positive number")
    compared = {name: np.where(ended, column, np.nan) if name.endswith("_s") else column for name, column in numbers.items()}
    return compared | {"first_token_s": numbers["ttft_s"]}


def measured_steps(folder: Path) -> pd.DataFrame | None:
    """A row a step, in the order of their results; None: the trace has no steps.

    Raises:
        UserError: the file cannot be read, or a column is missing.
    """
    path = folder / "steps.csv.gz"
    if not path.is_file():
        return None
    try:
        steps = pd.read_csv(path)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    missing = [name for name in STEP_COLUMNS if name not in steps.columns]
    if missing:
        raise UserError(f"{path}: column {missing[0]} is missing")
    return steps.assign(replica=steps.get("replica", 0))


def at_times(steps: pd.DataFrame, column: str, time_s: Float64) -> Float64:
    """float64[m, replicas]: a column's value at the given times, that of the last step scheduled until then; 0 before the first."""
    columns = []
    for _, of_replica in steps.groupby("replica"):
        latest = np.searchsorted(of_replica["schedule_s"], time_s, side="right") - 1
        values = of_replica[column].to_numpy(np.float64)
        columns.append(np.where(latest < 0, 0.0, values[np.maximum(latest, 0)]))
    return np.column_stack(columns)
