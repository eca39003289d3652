"""A run that begins in mid-traffic: who sent before it, and is still being answered, is there from the start."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from simulator.planning.sizing import Demand
from simulator.policies.predictor import expected_tokens
from simulator.workload import Workload
from simulator.workload.base import NS_PER_S


@dataclass(frozen=True, eq=False)
class Start:
    """Traffic whose first requests are under way already."""

    workload: Workload
    """They come first, all at once, their emitted tokens part of their prompts."""
    num_requests: int
    """So many of them."""
    lead_s: float
    """The engines take so long to compute their contexts; the traffic goes on then."""


def begin(workload: Workload, past_s: float, demand: Demand, num_replicas: int, num_prefills: int | None = None) -> Start:
    """Traffic of which the first `past_s` seconds are past when the run begins.

    A request sent u seconds before has emitted u / step tokens, with the decode step that Little's law gives for this size
    (`Demand`): so numbers, ages and residual lives are those of a service that always ran, as far as its steps were all alike.
    Their contexts are computed by all replicas, or by `num_prefills` of them. A warm-up then takes away what that estimate missed,
    which is far less than an empty service lacks.
    """
    requests = workload.requests
    sent_s = requests.arrival_ns / NS_PER_S - past_s
    done = np.where(sent_s < 0, -sent_s / demand.usual_step_s(num_replicas), 0).astype(np.int64)
    rows = np.flatnonzero(done < requests.output_tokens)
    there, sent_s, done = requests.take(rows), sent_s[rows], done[rows]
    contexts = there.prompt_tokens + done
    under_way = sent_s < 0
    lead_s = demand.computing_s(contexts[under_way]) / (num_prefills or num_replicas + demand.beside)
    going_on = replace(
        there,
        arrival_ns=np.where(under_way, 0, np.rint((sent_s + lead_s) * NS_PER_S)).astype(np.int64),
        prompt_tokens=contexts,
        output_tokens=there.output_tokens - done,
        max_tokens=there.max_tokens - done,
        visible_token=np.maximum(there.visible_token - done, 1),
        predicted_tokens=np.maximum(expected_tokens(there.predicted_tokens, done, there.max_tokens) - done, 1),
    )
    return Start(replace(workload, requests=going_on), int(under_way.sum()), lead_s)
