"""Times outside the GPU, read off a trace: a request's way into the engine, and a token's way out to the client."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from profiler.steps import Replay
from profiler.trace import Trace
from simulator.artifacts.artifact import Overheads

Float64 = NDArray[np.float64]

LOCAL_STEPS = 61
"""Steps over which the recorded clock and the cost model's are brought together."""


def overheads(trace: Trace, replayed: Replay, predicted_ns: Float64) -> Overheads:
    """Ingress and egress as the simulator means them.

    Ingress: the delay with which the most requests are seen by the engine at the boundary at which they were: a batch that is
    composed after result N takes the requests that reached the engine before that result.

    Egress: from the end of the step that gave the first token, by the cost model's clock, to the client; the mean. The
    recorded result of a step with a prefill is late by that clock: the thread that launches the next step handles it
    after that. Where launch times are not known (zero in the model), that wait is part of the way out.

    Args:
        trace: the measured trace.
        replayed: its requests' steps.
        predicted_ns: float64[k], the fitted time of each step.
    """
    ingress_s, _ = ingress(trace, replayed)
    arrival_s, ttft_s = (trace.requests[name].to_numpy(np.float64) for name in ("arrival_s", "ttft_s"))
    end_s = model_clock_s(trace.steps["update_s"].to_numpy(np.float64), predicted_ns, replayed.after_idle)
    egress_s = float(np.mean(arrival_s + ttft_s - end_s[replayed.first_token_step]))
    return Overheads(ingress_ns=_microseconds_ns(ingress_s), egress_ns=_microseconds_ns(egress_s))


def ingress(trace: Trace, replayed: Replay) -> tuple[float, float]:
    """(the delay that explains the most requests, seconds; the share that it explains).

    A delay d explains a request when arrival + d lies after one boundary and not after the next, at which it was taken.
    Requests that found the engine idle say nothing: (0, 0) if there are no others.
    """
    depth = trace.meta.engine_config().depth
    update_s = trace.steps["update_s"].to_numpy(np.float64)
    idle_before = np.cumsum(replayed.after_idle)
    arrival_s, step = trace.requests["arrival_s"].to_numpy(np.float64), replayed.first_token_step
    # A long prompt's first chunk came earlier than its first token: only prompts that were computed whole in one step count.
    whole = trace.requests["prompt_tokens"].to_numpy() <= trace.steps["prefill_tokens"].to_numpy()[step]
    before = step - depth - 1
    usable = whole & (before >= 0) & (idle_before[step] == idle_before[np.maximum(before, 0)])
    if not usable.any():
        return 0.0, 0.0
    least = np.maximum(update_s[before[usable]] - arrival_s[usable], 0.0)
    most = update_s[before[usable] + 1] - arrival_s[usable]
    edges = np.unique(np.concatenate([[0.0], least, most[most >= 0.0]]))
    middle = (edges[:-1] + edges[1:]) / 2
    explained = np.searchsorted(np.sort(least), middle) - np.searchsorted(np.sort(most), middle)
    best = np.flatnonzero(explained == explained.max())
    # Of equally good delays, the one in the middle.
    return float(middle[best[len(best) // 2]]), float(explained.max() / usable.sum())


def model_clock_s(update_s: Float64, predicted_ns: Float64, after_idle: NDArray[np.bool_]) -> Float64:
    """float64[k]: when each step ended by the cost model's durations, kept close to the recorded clock by a running median."""
    end_s = np.empty(len(update_s))
    starts = np.flatnonzero(after_idle)
    for start, stop in zip(starts, [*starts[1:], len(update_s)], strict=True):
        run = slice(int(start), int(stop))
        summed_s = np.cumsum(predicted_ns[run]) / 1e9
        end_s[run] = summed_s + median_filter(update_s[run] - summed_s, LOCAL_STEPS, mode="nearest")
    return end_s


def _microseconds_ns(seconds: float) -> int:
    """Whole microseconds, the resolution of the trace; a mean below zero is noise around none."""
    return max(round(seconds * 1e6), 0) * 1000
