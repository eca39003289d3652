"""What a run is compared with: the same traffic before a fixed fleet, or before one in which nothing breaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import ceil, nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.clients.patience import ClientConfig
from simulator.cluster import NS_PER_S
from simulator.planning.slo import Slos
from simulator.reporting.summary import summary
from simulator.simulate import Result, Scenario, simulate

COLUMNS = ("gpu_hours", "request_goodput", "goodput_share", "p99_ttft_ms", "p99_tpot_ms", "p99_e2el_ms", "given_up_share", "lost_share")
"""Figures of `summary.summary` that are compared."""


def variants(scenario: Scenario, result: Result) -> Iterator[tuple[str, Scenario]]:
    """(name, scenario) of what a run is to be seen beside; nothing for a service that stays as it is."""
    if scenario.outages is not None:
        yield "no outages", replace(scenario, outages=None, clients=scenario.clients or ClientConfig())
    if scenario.autoscaling is not None:
        for size in sorted({mean_replicas(result), peak_replicas(result)}):
            yield f"{size} fixed", replace(scenario, autoscaling=None, num_replicas=size)


def compared(scenario: Scenario, result: Result, slos: Slos | None) -> dict[str, dict[str, float]]:
    """`COLUMNS` of the run and of its variants, by name; empty where there are none."""
    found = {name: _figures(simulate(other), slos) for name, other in variants(scenario, result)}
    return {"this service": _figures(result, slos), **found} if found else {}


def mean_replicas(result: Result) -> int:
    """Replicas of the main group whose GPUs were held on average, rounded up."""
    held_ns = result.gpu_ns - sum(g.num_replicas * g.gpus_per_replica for g in result.scenario.others) * result.end_ns
    return ceil(held_ns / result.scenario.groups[0].gpus_per_replica / max(result.end_ns, 1) - 1e-9)


def peak_replicas(result: Result) -> int:
    """Replicas of the main group that were there at once, at most."""
    born, gone = result.lifetime_ns[result.group == 0].T
    return int(((born[:, None] >= born) & (born[:, None] < gone)).sum(1).max(initial=1))


def serving_share(result: Result) -> float:
    """Availability: replica time there was, over replica time with nothing broken or being renewed; without autoscaling."""
    replicas = sum(group.num_replicas for group in result.scenario.groups)
    return float(np.diff(result.lifetime_ns).sum()) / max(replicas * result.end_ns, 1)


def per_group(result: Result) -> dict[str, dict[str, float]]:
    """Of each group of replicas: `replicas` that there ever were, `requests_share`, `output_tokens_per_s`, `gpu_utilization`.

    And the 99th percentiles of its answers' TTFT and TPOT, milliseconds, from the attempt that was answered; NaN without answers.
    """
    found = {}
    answered = result.finish_ns >= 0
    ttft_ms = (result.first_token_ns - result.sent_ns) / 1e6
    tpot_ms = (result.finish_ns - result.first_token_ns) / 1e6 / np.maximum(result.requests.output_tokens - 1, 1)
    sent = result.replica >= 0
    for index, group in enumerate(result.scenario.groups):
        mine = result.group == index
        here = sent & mine[np.maximum(result.replica, 0)]
        there_ns = float(np.diff(result.lifetime_ns[mine]).sum())
        found[group.name] = {
            "replicas": int(mine.sum()),
            "requests_share": float(here.sum() / max(sent.sum(), 1)),
            "output_tokens_per_s": float(result.emitted_tokens[here].sum()) / max(result.end_ns / NS_PER_S, 1e-9),
            "gpu_utilization": min(float(result.busy_ns[mine].sum()) / max(there_ns, 1.0), 1.0),
            "p99_ttft_ms": _p99(ttft_ms[here & answered]),
            "p99_tpot_ms": _p99(tpot_ms[here & answered & (result.requests.output_tokens > 1)]),
        }
    return found


def _p99(values: NDArray[np.float64]) -> float:
    return float(np.percentile(values, 99)) if len(values) else nan


def _figures(result: Result, slos: Slos | None) -> dict[str, Any]:
    figures = summary(result, slos, itl=False)
    return {name: figures[name] for name in COLUMNS if name in figures}
