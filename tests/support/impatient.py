"""Random clients that time out, try again and give up, in front of random services."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simulator.clients.patience import ClientConfig, Patience, Retry
from simulator.clients.ratelimit import MaxOutstanding, TokenBucket
from simulator.simulate import Scenario
from tests.support.services import random_scenario


def impatient_scenario(seed: int) -> Scenario:
    """The same scenario for the same seed. Deadlines lie on the grid of the steps, so that they often fall on a step's end."""
    scenario = random_scenario(seed)
    rng = np.random.default_rng([seed, 2])
    step_s = scenario.cost.artifact.step["none"].gpu_ns["one"] / 1e9
    kind = int(rng.integers(4))
    limit = TokenBucket(rate=float(rng.choice([0.02, 0.2])) / step_s, burst=int(rng.integers(1, 6)))
    limits = [None, limit, MaxOutstanding(limit=int(rng.integers(1, 12)), retry_after_s=float(rng.choice([1, 7])) * step_s)]
    retry = Retry(
        max_attempts=int(rng.integers(2, 5)),
        base_s=float(rng.choice([1, 3])) * step_s,
        max_s=20 * step_s,
        jitter=float(rng.choice([0.0, 0.5])),
    )
    patience = Patience(
        until=str(rng.choice(["ttft", "e2e"])),
        kind=str(rng.choice(["constant", "exponential", "lognormal"])),
        mean_s=float(rng.integers(2, 60)) * step_s,
    )
    return replace(
        scenario,
        clients=ClientConfig(
            timeout_s=float(rng.integers(1, 80)) * step_s if kind != 1 else None,
            patience=patience if kind in (1, 2) else None,
            retry=retry if kind != 0 else None,
            rate_limit=limits[int(rng.integers(3))],
        ),
    )
