"""One size of the service, judged over all its runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import isnan, nan

import numpy as np

from simulator.metrics import Latency, SloOutcome
from simulator.planning.slo import Slo, Slos
from simulator.planning.steady import Estimate, Growth, growth
from simulator.planning.trial import Trial

GOODPUT = "min_goodput_share"
QUEUE_SHARE = 0.05
"""A queue that grows is one that adds at least this share of the requests in the system over the measured window …"""
SYSTEM_SHARE = 0.5
"""… or a number in the system that rises by half of its mean: traffic alone swings less."""


@dataclass(frozen=True)
class Check:
    """One SLO over all runs."""

    name: str
    """As in a config: `tpot_ms.p99`."""
    limit: float
    """Seconds; a share for the goodput."""
    estimate: Estimate
    share: float
    """Of requests within the limit; NaN for ITL."""

    @classmethod
    def of(cls, slo: Slo, trials: tuple[Trial, ...], confidence: float) -> Check:
        """A limit on a latency: of the requests of all runs together; for ITL the mean of the runs' figures."""
        name = slo.name
        if slo.metric == "itl":
            return cls(name, slo.limit_s, _of_means([_outcome(trial, name).value for trial in trials], slo.limit_s, confidence), nan)

        def figure(some: tuple[Trial, ...]) -> float:
            return pooled(some, slo.metric).percentile(slo.percentile)

        latency = pooled(trials, slo.metric)
        if not len(latency):  # no such request: nothing breaks the limit
            return cls(name, slo.limit_s, Estimate(0.0, 0.0, 0.0, 0.0, len(trials)), 1.0)
        value, alone = figure(trials), [figure((trial,)) for trial in trials]
        without = [figure(trials[:index] + trials[index + 1 :]) for index in range(len(trials))] if len(trials) > 1 else [nan]
        return cls(name, slo.limit_s, Estimate.of(value, alone, without, confidence), latency.attainment(slo.limit_s))

    @classmethod
    def of_goodput(cls, least: float, trials: tuple[Trial, ...], confidence: float) -> Check:
        """The share of requests that keep all limits."""
        shares = [_outcome(trial, GOODPUT).value for trial in trials]
        estimate = _of_means(shares, least, confidence)
        return cls(GOODPUT, least, estimate, estimate.value)

    @property
    def headroom(self) -> float:
        """Above 0: met, with so much of the limit to spare."""
        room = 1 - self.estimate.value / self.limit
        return -room if self.name == GOODPUT else room

    @property
    def met(self) -> bool:
        return self.headroom >= 0

    @property
    def chance(self) -> float:
        """How likely it is met, from how far the runs differ."""
        if not self.estimate.error > 0:
            return float(self.met)
        below = self.estimate.chance_below(self.limit)
        return 1 - below if self.name == GOODPUT else below


def pooled(trials: tuple[Trial, ...], metric: str) -> Latency:
    """A latency of the measured requests of all runs."""
    parts = [trial.latencies[metric] for trial in trials]
    return Latency(np.concatenate([part.values_s for part in parts]), np.concatenate([part.observed for part in parts]))


def _outcome(trial: Trial, name: str) -> SloOutcome:
    return next(outcome for outcome in trial.outcomes if outcome.name == name)


def _of_means(values: list[float], otherwise: float, confidence: float) -> Estimate:
    """Of runs that count alike; those without such a figure (NaN) are left out."""
    known = [value for value in values if not isnan(value)] or [otherwise]
    mean, n = sum(known) / len(known), len(known)
    return Estimate.of(mean, known, [(n * mean - value) / (n - 1) if n > 1 else nan for value in known], confidence)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A number of replicas, and the evidence for and against it."""

    num_replicas: int
    trials: tuple[Trial, ...]
    checks: tuple[Check, ...]

    @classmethod
    def of(cls, trials: tuple[Trial, ...], slos: Slos, confidence: float) -> Candidate:
        """Of runs that differ in their seeds."""
        checks = [Check.of(slo, trials, confidence) for slo in slos.limits]
        if slos.min_goodput_share is not None:
            checks.append(Check.of_goodput(slos.min_goodput_share, trials, confidence))
        return cls(trials[0].num_replicas, trials, tuple(checks))

    @cached_property
    def in_system(self) -> Growth:
        """Trend of the requests in the system."""
        return growth([trial.in_system for trial in self.trials])

    @cached_property
    def waiting(self) -> Growth:
        """Trend of the requests without a seat, relative to those in the system."""
        return growth([trial.waiting for trial in self.trials], relative_to=[trial.in_system for trial in self.trials])

    @property
    def unstable(self) -> bool:
        """Requests come faster than they are answered."""
        return self.waiting.exceeds(QUEUE_SHARE) or self.in_system.exceeds(SYSTEM_SHARE)

    @property
    def binding(self) -> Check:
        """The SLO with the least headroom."""
        return min(self.checks, key=lambda check: check.headroom)

    @property
    def suffices(self) -> bool:
        """In steady state every SLO is met."""
        return not self.unstable and self.binding.met

    @property
    def chance(self) -> float:
        """How likely it suffices, from the scatter of the runs: the chance of the SLO that is least sure."""
        return 0.0 if self.unstable else min(check.chance for check in self.checks)
