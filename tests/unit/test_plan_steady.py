"""Warm-up, growth and confidence, against what theory says."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from scipy import stats

from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.planning.sizing import FILLED, Demand
from simulator.planning.steady import Estimate, Period, growth, settling_s, still_off
from simulator.request import RequestTable


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_settling_is_where_the_residual_life_says() -> None:
    # Constant lifetimes L: E[(L − t)⁺] = L − t.
    assert settling_s(np.full(100, 40.0), 4.0) == pytest.approx(36.0)
    # Uniform on [0, 1]: (1 − t)² / 2.
    assert settling_s(np.linspace(0, 1, 100_001), 0.02) == pytest.approx(0.8, abs=1e-3)
    assert settling_s(np.array([1.0, 2.0]), 10.0) == 0.0


def test_a_period_measures_at_least_the_longest_lifetime() -> None:
    period = Period.of(np.array([1.0, 5.0, 60.0]), 12.0, 30.0)
    assert period.measured_s == 60
    assert period.window == (12.0, 72.0)
    assert period.end_s == period.window[1] + period.cooldown_s


def filling_demand(outputs: np.ndarray, per_seq_ns: float) -> Demand:
    n = len(outputs)
    requests = RequestTable.build(np.arange(n), np.full(n, 1), outputs)
    return Demand(requests, 10.0, EngineConfig(num_gpu_blocks=100_000), CostModel.constant(10_000_000, per_seq_ns=per_seq_ns))


def test_an_empty_service_of_constant_lifetimes_fills_linearly() -> None:
    # 1,000 steps of 10 ms: full after 10 s.
    assert filling_demand(np.full(50, 1000), 0.0).filling_s(1) == pytest.approx(10 * FILLED, rel=0.03)


def test_a_service_that_slows_down_as_it_fills_takes_longer_than_its_lifetimes() -> None:
    demand = filling_demand(np.full(50, 1000), 50_000.0)  # 10 requests/s × 1,000 tokens × 0.05 ms: half of the steady step
    step_s = demand.step_of(1)
    assert step_s == pytest.approx(0.02, rel=0.02)
    filling_s = demand.filling_s(1)
    assert filling_s is not None
    assert filling_s > 1.1 * 1000 * step_s * FILLED


def test_little_s_law_gives_the_step_of_a_loaded_service() -> None:
    # x × 100 × (10 ms + 1 ms × running) = running, x = 5: running = 10, a step takes 20 ms.
    demand = filling_demand(np.full(50, 100), 1e6)
    assert demand.step_of(2) == pytest.approx(0.02, rel=0.1)
    assert demand.step_of(1) is None
    assert demand.fewest(64) == 2


def test_what_is_left_of_a_wrong_start_is_told_from_chance(rng: np.random.Generator) -> None:
    levels = rng.normal(100, 5, 8).tolist()
    assert still_off([level - 20 for level in levels], levels, 0.0) == pytest.approx(0.2, rel=0.05)
    assert still_off([level + 20 for level in levels], levels, 0.9) == pytest.approx(0.02, rel=0.05)
    assert still_off(rng.normal(100, 5, 8).tolist(), levels, 0.0) < 0.03


def test_a_growing_queue_is_told_from_noise(rng: np.random.Generator) -> None:
    def noise() -> np.ndarray:
        return 200 + np.convolve(rng.normal(0, 8, 340), np.ones(40) / sqrt(40), mode="valid")

    ramp = np.linspace(0, 100, 301)
    assert growth([noise() + ramp for _ in range(4)]).exceeds(0.1)
    assert growth([noise() + ramp]).exceeds(0.1)
    false_alarms = sum(growth([noise() for _ in range(4)]).exceeds(0.05) for _ in range(200))
    assert false_alarms <= 6
    assert not growth([noise() - ramp for _ in range(4)]).exceeds(0.0)


def test_a_queue_that_is_always_empty_does_not_grow() -> None:
    assert not growth([np.zeros(50)] * 3, relative_to=[np.full(50, 10.0)] * 3).exceeds(0.0)


def test_the_jackknife_of_a_mean_is_student_s_interval(rng: np.random.Generator) -> None:
    values = rng.normal(5, 1, 6)
    without = [float(np.delete(values, i).mean()) for i in range(6)]
    estimate = Estimate.of(float(values.mean()), values.tolist(), without, 0.95)
    low, high = stats.t.interval(0.95, 5, loc=values.mean(), scale=stats.sem(values))
    assert (estimate.low, estimate.high) == pytest.approx((low, high))
    assert estimate.chance_below(high) == pytest.approx(0.975)


def test_one_run_has_no_interval() -> None:
    estimate = Estimate.of(3.0, [3.0], [float("nan")], 0.95)
    assert np.isnan(estimate.low)
    assert (estimate.chance_below(4.0), estimate.chance_below(2.0)) == (1.0, 0.0)
