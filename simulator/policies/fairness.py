"""Who pays for a crowded service: each request's slowdown, and how evenly it falls on all of them."""

from __future__ import annotations

from simulator.metrics import Latency, Window, latencies, sent_in
from simulator.planning.sizing import Demand
from simulator.simulate import Result


def slowdowns(result: Result, window: Window | None = None) -> Latency:
    """E2E of every request that was sent (in the window) over what it would have been on an engine of its own, shape (n,), no unit.

    On an engine of its own: its prompt computed at once, then decode steps of one sequence. Censored as E2E is.
    """
    sent, e2e = sent_in(result, window), latencies(result, window)["e2e"]
    scenario = result.scenario
    demand = Demand(result.requests, 0.0, scenario.engine, scenario.cost)
    alone = demand.latencies(demand.alone_step_s)["e2e"]
    return Latency(e2e.values_s / alone.values_s[sent], e2e.observed)


def fairness(result: Result, window: Window | None = None) -> dict[str, float]:
    """`mean_slowdown`, `p99_slowdown`, and `slowdown_fairness`: Jain's index of them, (Σx)² / (n Σx²), 1 if all are equal.

    Source: Jain, Chiu and Hawe, DEC Research Report TR-301, 1984. NaN without requests. The Kaplan–Meier estimate where runs are cut.
    """
    found = slowdowns(result, window)
    mean, deviation = found.moments()
    return {
        "mean_slowdown": mean,
        "p99_slowdown": found.percentile(99.0),
        "slowdown_fairness": mean**2 / (mean**2 + deviation**2),
    }
