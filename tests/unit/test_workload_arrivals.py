"""Arrivals against the laws they are said to follow."""

import numpy as np
import pytest
from scipy import integrate, stats

from simulator.errors import UserError
from simulator.workload.arrivals import Ar1, Gamma, Hourly, Poisson, Preset, Uniform, arrivals_s
from simulator.workload.base import stream

N = 40_000


@pytest.mark.parametrize("cv", [0.5, 1.0, 1.26, 2.0, 3.2])
def test_gaps_are_gamma_of_the_given_rate_and_cv(cv: float) -> None:
    gaps = np.diff(arrivals_s(Gamma(rate=20, cv=cv), seed=3, num_requests=N))
    assert gaps.mean() == pytest.approx(1 / 20, rel=5 * cv / np.sqrt(N))  # five standard errors
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.06)
    # Kolmogorov–Smirnov, whose upper 0.1 % quantile is 1.95/√n, over the gaps that a nanosecond clock can tell from none.
    ordered = np.sort(gaps)
    distance = np.abs(np.arange(1, N) / N - stats.gamma(1 / cv**2, scale=cv**2 / 20).cdf(ordered))[ordered > 1e-9]
    assert distance.max() < 1.95 / np.sqrt(N)


def test_poisson_counts_have_variance_equal_to_their_mean() -> None:
    times = arrivals_s(Poisson(rate=50), seed=1, duration_s=2000)
    counts = np.bincount(times.astype(int), minlength=2000)
    assert counts.var() / counts.mean() == pytest.approx(1, abs=5 * np.sqrt(2 / 2000))


def test_uniform_is_evenly_spaced() -> None:
    np.testing.assert_allclose(arrivals_s(Uniform(rate=4), seed=0, num_requests=4), [0.25, 0.5, 0.75, 1.0])


def test_preset_has_the_catalogues_burstiness_and_no_modulation_unless_asked() -> None:
    plain = Preset(name="reasoning", rate=20)
    assert plain.resolve() == Gamma(rate=20, cv=1.26)
    assert Preset(name="reasoning", rate=20, cv=1.75).resolve().cv == 1.75
    assert Preset(name="chat", rate=5, modulation="ar1").resolve().modulation == Ar1(step_s=60, log_std=0.22, ar1=0.85)
    np.testing.assert_array_equal(
        arrivals_s(plain, seed=7, num_requests=100), arrivals_s(Gamma(rate=20, cv=1.26), seed=7, num_requests=100)
    )


def test_ar1_has_mean_one_and_the_given_spread_and_memory() -> None:
    factors = Ar1(step_s=600, log_std=0.48, ar1=0.9).factors(400_000, stream(0, "test"))
    log_rate = np.log(factors)
    assert factors.mean() == pytest.approx(1, abs=0.02)
    assert log_rate.std() == pytest.approx(0.48, rel=0.02)
    assert np.corrcoef(log_rate[:-1], log_rate[1:])[0, 1] == pytest.approx(0.9, abs=0.01)


def test_hourly_profile_is_followed_from_its_start_hour_and_keeps_the_mean_rate() -> None:
    profile = tuple(float(hour) for hour in range(1, 25))
    times = arrivals_s(Poisson(rate=10, modulation=Hourly(profile=profile, start_hour=6)), seed=2, duration_s=86_400)
    per_hour = np.bincount((times // 3600).astype(int), minlength=24)
    expected = 36_000 * np.roll(profile, -6) / np.mean(profile)
    assert (np.abs(per_hour - expected) < 5 * np.sqrt(expected)).all()
    assert len(times) == pytest.approx(864_000, abs=5 * np.sqrt(864_000))


def test_an_hour_without_traffic_has_none() -> None:
    profile = (1.0,) * 12 + (0.0,) * 12
    times = arrivals_s(Poisson(rate=1, modulation=Hourly(profile=profile)), seed=2, duration_s=86_400)
    assert len(times) > 80_000
    assert times.max() < 12 * 3600


def test_modulation_adds_variance_over_long_windows_only() -> None:
    steady = arrivals_s(Poisson(rate=10), seed=5, duration_s=600 * 600)
    swinging = arrivals_s(Poisson(rate=10, modulation=Ar1(step_s=600, log_std=0.48, ar1=0.9)), seed=5, duration_s=600 * 600)

    def dispersion(times: np.ndarray, window_s: float) -> float:
        counts = np.bincount((times // window_s).astype(int))
        return float(counts.var() / counts.mean())

    assert dispersion(swinging, 600) > 300 * dispersion(steady, 600)
    assert np.diff(swinging).std() / np.diff(swinging).mean() < 1.4


@pytest.mark.parametrize("modulation", [None, Ar1(step_s=10, log_std=0.5, ar1=0.8), Hourly(profile=tuple(range(24)))])
def test_a_shorter_run_is_the_beginning_of_a_longer_one(modulation: Ar1 | Hourly | None) -> None:
    spec = Gamma(rate=3, cv=1.26, modulation=modulation)
    by_number = arrivals_s(spec, seed=9, num_requests=50_000)
    until = float(by_number[20_000])
    by_time = arrivals_s(spec, seed=9, duration_s=until)
    np.testing.assert_allclose(by_time, by_number[:20_000], rtol=1e-12)
    np.testing.assert_array_equal(by_time, arrivals_s(spec, seed=9, duration_s=until, num_requests=30_000))


def test_another_rate_stretches_the_same_gaps() -> None:
    slow, fast = (arrivals_s(Gamma(rate=rate, cv=1.26), seed=4, num_requests=1000) for rate in (5, 20))
    np.testing.assert_allclose(slow, 4 * fast)


def test_superposed_clients_are_as_bursty_as_renewal_theory_says() -> None:
    cv, num_clients = 2.0, 20
    clients = [arrivals_s(Gamma(rate=1, cv=cv), 0, f"client{i}", duration_s=5000) for i in range(num_clients)]
    gaps = np.diff(np.sort(np.concatenate(clients)))
    # A gap of the superposition outlasts x if one client's gap does, and the residual gaps of all others do (Palm).
    x = np.concatenate([[0], np.geomspace(1e-9, 60, 40_000)])
    survival = stats.gamma(1 / cv**2, scale=cv**2).sf(x)
    residual = np.clip(1 - integrate.cumulative_trapezoid(survival, x, initial=0), 0, None)
    second_moment = 2 * integrate.trapezoid(x * survival * residual ** (num_clients - 1), x)
    assert gaps.std() / gaps.mean() == pytest.approx(np.sqrt(second_moment * num_clients**2 - 1), rel=0.03)


def test_seeds_and_names_make_independent_streams() -> None:
    spec = Poisson(rate=1)
    first = arrivals_s(spec, 0, num_requests=5000)
    for other in (arrivals_s(spec, 1, num_requests=5000), arrivals_s(spec, 0, "other", num_requests=5000)):
        assert abs(np.corrcoef(np.diff(first), np.diff(other))[0, 1]) < 0.07


def test_arrivals_without_end_or_beyond_memory_are_refused() -> None:
    with pytest.raises(UserError, match="duration_s or num_requests"):
        arrivals_s(Poisson(rate=1), 0)
    with pytest.raises(UserError, match="at most 20,000,000"):
        arrivals_s(Poisson(rate=1e9), 0, duration_s=3600)
