"""When clients send: renewal processes of a given rate and burstiness, under an optional slow modulation of the rate.

A modulated process is the unmodulated one seen through another clock: a renewal process of unit rate runs in *operational
time*, which passes at the momentary rate; its events are mapped back to seconds. So burstiness (CV of the gaps) and slow
modulation are set, and drawn, apart from each other.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from simulator.errors import UserError
from simulator.workload.base import Float64, Spec, stream
from simulator.workload.catalogue import arrival_preset

MOST_REQUESTS = 20_000_000
"""Above this a run would end for lack of memory; a rate or duration is mistyped."""


class Ar1(Spec):
    """The log-rate wanders as a stationary AR(1): standard deviation `log_std`, correlation `ar1` from one step to the next."""

    kind: Literal["ar1"] = "ar1"
    step_s: float = Field(ge=1)
    log_std: float = Field(ge=0, le=3)
    ar1: float = Field(ge=0, lt=1)

    def factors(self, num_steps: int, rng: np.random.Generator) -> Float64:
        """float64[num_steps] factors on the rate; their expectation is 1 (a lognormal's mean would be exp(log_std²/2))."""
        shocks = rng.standard_normal(num_steps)
        shocks[1:] *= np.sqrt(1 - self.ar1**2)
        level = np.fromiter(accumulate(shocks, lambda before, shock: self.ar1 * before + shock), np.float64, num_steps)
        return np.exp(self.log_std * level - self.log_std**2 / 2)


class Hourly(Spec):
    """The rate follows a daily profile of 24 relative hourly rates; the run starts at the beginning of `start_hour`."""

    kind: Literal["hourly"] = "hourly"
    profile: tuple[Annotated[float, Field(ge=0)], ...] = Field(min_length=24, max_length=24)
    start_hour: int = Field(0, ge=0, le=23)
    step_s: Literal[3600] = 3600

    @field_validator("profile")
    @classmethod
    def _some_traffic(cls, profile: tuple[float, ...]) -> tuple[float, ...]:
        if sum(profile) <= 0:
            raise ValueError("at least one of the 24 hourly rates must be positive")
        return profile

    def factors(self, num_steps: int, _rng: np.random.Generator) -> Float64:
        """float64[num_steps] factors on the rate; their mean over a day is 1."""
        relative = np.roll(np.array(self.profile), -self.start_hour)
        return np.resize(relative / relative.mean(), num_steps)


Modulation = Annotated[Ar1 | Hourly, Field(discriminator="kind")]


class Gamma(Spec):
    """Gamma-distributed gaps of mean 1/rate and coefficient of variation `cv`: shape 1/cv²."""

    kind: Literal["gamma"] = "gamma"
    rate: float = Field(gt=0)
    """Requests a second."""
    cv: float = Field(ge=0.01, le=50)
    modulation: Modulation | None = None


class Poisson(Spec):
    """Exponential gaps: clients that know nothing of each other."""

    kind: Literal["poisson"] = "poisson"
    rate: float = Field(gt=0)
    modulation: Modulation | None = None

    @property
    def cv(self) -> float:
        return 1.0


class Uniform(Spec):
    """Evenly spaced requests."""

    kind: Literal["uniform"] = "uniform"
    rate: float = Field(gt=0)
    modulation: Modulation | None = None

    @property
    def cv(self) -> float:
        return 0.0


class Preset(Spec):
    """Gamma gaps with the burstiness of a catalogue preset; `modulation` asks for the preset's own, off by default.

    `api_client` is an on/off source of undocumented periods: it is given here as plain Gamma gaps of its CV.
    """

    kind: Literal["preset"] = "preset"
    name: str
    rate: float = Field(gt=0)
    cv: float | None = Field(None, ge=0.01, le=50)
    """Instead of the preset's, for a sweep."""
    modulation: Literal["ar1", "hourly"] | None = None

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        arrival_preset(name)
        return name

    @model_validator(mode="after")
    def _has_that_modulation(self) -> Preset:
        self.resolve()
        return self

    def resolve(self) -> Gamma:
        """The Gamma process that the preset stands for."""
        preset = arrival_preset(self.name)
        own: dict[str, Ar1 | Hourly] = {}
        if "rate_modulation" in preset:
            own["ar1"] = Ar1(**preset["rate_modulation"])
        if "hourly_relative_rate" in preset:
            own["hourly"] = Hourly(profile=tuple(preset["hourly_relative_rate"]))
        if self.modulation is not None and self.modulation not in own:
            raise ValueError(f"preset {self.name} has no modulation '{self.modulation}'; valid: {', '.join(['null', *own])}")
        cv = self.cv if self.cv is not None else float(preset["cv"])
        return Gamma(rate=self.rate, cv=cv, modulation=own.get(self.modulation or ""))


Arrivals = Annotated[Gamma | Poisson | Uniform | Preset, Field(discriminator="kind")]


def describe_arrivals(spec: Arrivals) -> str:
    """Rate, law and burstiness in a few words."""
    process = spec.resolve() if isinstance(spec, Preset) else spec
    law = f"{spec.name} arrivals" if isinstance(spec, Preset) else f"{spec.kind} arrivals"
    modulated = f", {process.modulation.kind} modulation" if process.modulation else ""
    return f"{spec.rate:g} requests/s, {law} (CV {process.cv:g}{modulated})"


def arrivals_s(
    spec: Arrivals, seed: int, name: str = "default", *, duration_s: float | None = None, num_requests: int | None = None
) -> Float64:
    """Arrival times in seconds, ascending: the first `num_requests` of them, those before `duration_s`, or whichever ends first.

    `name` is the client's: clients of different names are independent. Arrivals of a shorter run are the first of a longer one.

    Raises:
        UserError: neither end is given, or the run would have more requests than memory holds.
    """
    process = spec.resolve() if isinstance(spec, Preset) else spec
    expected = min(np.inf if duration_s is None else process.rate * duration_s, np.inf if num_requests is None else num_requests)
    if np.isinf(expected):
        raise UserError("workload: give duration_s or num_requests, else the arrivals never end")
    if expected > MOST_REQUESTS:
        raise UserError(f"workload: {expected:.3g} requests are asked for; at most {MOST_REQUESTS:,} fit into a run")
    rng = stream(seed, f"{name}/gaps")
    if num_requests is not None:
        times = _seconds(np.cumsum(_unit_gaps(process.cv, num_requests, rng)), process, seed, name)
        return times if duration_s is None else times[times < duration_s]
    assert duration_s is not None
    return _seconds(_events_until(_operational_time(duration_s, process, seed, name), process.cv, rng), process, seed, name)


def _unit_gaps(cv: float, num: int, rng: np.random.Generator) -> Float64:
    return np.ones(num) if cv == 0 else rng.standard_gamma(1 / cv**2, num) * cv**2


def _events_until(end: float, cv: float, rng: np.random.Generator) -> Float64:
    """Events of the unit-rate process before `end`. The stream is read on until it suffices, so its events never change."""
    events = np.empty(0)
    while len(events) == 0 or events[-1] < end:
        last = events[-1] if len(events) else 0.0
        enough = int(end - last + 6 * max(cv, 1.0) * np.sqrt(end)) + 16
        events = np.concatenate([events, last + np.cumsum(_unit_gaps(cv, enough, rng))])
    return events[events < end]


def _knots(process: Gamma | Poisson | Uniform, num_steps: int, seed: int, name: str) -> tuple[Float64, Float64]:
    """(seconds, operational time) at the ends of the modulation's steps, between which the rate is constant."""
    assert process.modulation is not None
    factors = process.modulation.factors(num_steps, stream(seed, f"{name}/modulation"))
    step_s = float(process.modulation.step_s)
    seconds: Float64 = np.arange(num_steps + 1, dtype=np.float64) * step_s
    operational: Float64 = np.concatenate([[0.0], np.cumsum(factors)]) * (process.rate * step_s)
    return seconds, operational


def _operational_time(at_s: float, process: Gamma | Poisson | Uniform, seed: int, name: str) -> float:
    if process.modulation is None:
        return process.rate * at_s
    return float(np.interp(at_s, *_knots(process, int(at_s // process.modulation.step_s) + 1, seed, name)))


def _seconds(events: Float64, process: Gamma | Poisson | Uniform, seed: int, name: str) -> Float64:
    if process.modulation is None:
        return events / process.rate
    num_steps = 64
    while len(events):
        seconds, operational = _knots(process, num_steps, seed, name)
        if operational[-1] >= events[-1]:
            return np.interp(events, operational, seconds)
        num_steps *= 2
    return events
