"""The fit finds known coefficients again, and what two clocks do to a fit of single steps."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone

from profiler.fit import StepTimeRegressor, cross_validated, errors, fit, held_out, non_negative, window_sums
from profiler.steps import Steps, as_matrix, pad
from simulator.cost import CostModel
from simulator.engine import EngineConfig, GraphMode
from simulator.features import StepFeatures

ENGINE = EngineConfig(num_gpu_blocks=66911)
TRUE = StepTimeRegressor(
    terms=("one", "padded_tokens", "decode_context_tokens"), mode_terms={"piecewise": ("one",), "none": ("prefill_tokens",)}
)
COEFFICIENTS = np.array([6e6, 7e3, 18.0, 2e6, 3e4])


def features(k: int, seed: int = 1) -> StepFeatures:
    """Batches that come and go, with a prompt in about one step of ten."""
    random = np.random.default_rng(seed)
    decode_seqs = np.clip(60 + np.cumsum(random.integers(-3, 4, k)), 1, 200)
    prefill_seqs = (random.random(k) < 0.1).astype(np.int64)
    prefill_tokens = prefill_seqs * random.integers(20, 900, k)
    context = decode_seqs * random.integers(500, 3000) + np.cumsum(random.integers(0, 60, k))
    padded, mode = pad(ENGINE, decode_seqs + prefill_tokens, prefill_seqs == 0)
    return StepFeatures(
        prefill_seqs,
        prefill_tokens,
        prefill_tokens,
        prefill_tokens**2,
        decode_seqs,
        context,
        context // decode_seqs + 500,
        0 * context,
        padded,
        mode,
        0 * context,
        0 * context,
    )


def times_ns(columns: StepFeatures) -> np.ndarray:
    known = clone(TRUE)
    known.fit(as_matrix(columns), np.ones(len(columns.graph_mode)))
    known.coef_ = COEFFICIENTS
    return known.predict(as_matrix(columns))


def two_clocks(columns: StepFeatures, duration_ns: np.ndarray) -> np.ndarray:
    """Most of a prefill's time shows up in the step before it: its launch delays that step's result."""
    shifted = duration_ns.copy()
    late = np.flatnonzero(columns.prefill_seqs[1:]) + 1
    moved = 0.7 * duration_ns[late]
    shifted[late] -= moved
    shifted[late - 1] += moved
    return shifted


def as_steps(columns: StepFeatures, duration_ns: np.ndarray) -> Steps:
    k = len(duration_ns)
    return Steps(columns, np.rint(duration_ns).astype(np.int64), np.cumsum(duration_ns) / 1e9, np.zeros(k, np.int64))


def test_known_coefficients_are_found_again() -> None:
    columns = features(3000)
    fitted = clone(TRUE).fit(as_matrix(columns), times_ns(columns))
    np.testing.assert_allclose(fitted.coef_, COEFFICIENTS, rtol=1e-6)


def test_windows_see_through_two_clocks_where_single_steps_do_not() -> None:
    columns = features(6000)
    true = times_ns(columns)
    recorded = two_clocks(columns, true)
    prefill = columns.prefill_seqs > 0

    def prefill_error(window: int) -> float:
        fitted = clone(TRUE).set_params(window=window).fit(as_matrix(columns), recorded)
        return float(fitted.predict(as_matrix(columns))[prefill].sum() / true[prefill].sum() - 1.0)

    assert abs(prefill_error(6)) < 0.12
    assert prefill_error(1) < -0.35


def test_no_coefficient_is_negative() -> None:
    columns = features(2000)
    # The more sequences, the faster: no physics, and what noise can look like.
    falling = 3e7 - 5e4 * columns.decode_seqs
    fitted = StepTimeRegressor().fit(as_matrix(columns), falling)
    assert (fitted.coef_ >= 0.0).all()
    assert fitted.coef_[0] > 1e7
    assert all(value > 0.0 for regime in fitted.regimes().values() for value in regime.gpu_ns.values())


@pytest.mark.parametrize("off", [-1e-15, 0.0, 1e-15])
def test_of_columns_that_say_the_same_the_first_is_taken(off: float) -> None:
    """However another CPU rounds them."""
    rng = np.random.default_rng(0)
    seqs, context = rng.integers(1, 512, 200).astype(float), rng.integers(1, 10**6, 200).astype(float)
    drafts = 3.0 * seqs * (1.0 + off * rng.choice([-1.0, 1.0], 200))
    times_ns = 9000.0 * seqs + 2.0 * context
    assert non_negative(np.column_stack([seqs, context, drafts]), times_ns) == pytest.approx([9000.0, 2.0, 0.0])
    assert non_negative(np.column_stack([drafts, context, seqs]), times_ns) == pytest.approx([3000.0, 2.0, 0.0])


def test_the_same_steps_give_the_same_bits() -> None:
    columns = features(2000)
    recorded = two_clocks(columns, times_ns(columns))
    first, second = (fit(as_steps(columns, recorded)) for _ in range(2))
    assert first.coef_.tobytes() == second.coef_.tobytes()
    assert first.regimes() == second.regimes()


def test_noise_that_lengthens_does_not_bias_the_sum() -> None:
    columns = features(6000)
    noisy = times_ns(columns) * np.random.default_rng(2).gamma(4.0, 1 / 4.0, 6000)
    fitted = clone(TRUE).fit(as_matrix(columns), noisy)
    assert fitted.predict(as_matrix(columns)).sum() / noisy.sum() == pytest.approx(1.0, abs=0.005)


def test_the_artifact_predicts_what_the_estimator_does() -> None:
    columns = features(500)
    fitted = fit(as_steps(columns, times_ns(columns)))
    plain = CostModel.constant(1).artifact
    model = CostModel(plain.model_copy(update={"step": fitted.regimes()}))
    expected = fitted.predict(as_matrix(columns))
    for k in range(0, 500, 7):
        step = StepFeatures(*(int(column[k]) for column in columns))._replace(graph_mode=GraphMode(int(columns.graph_mode[k])))
        # The artifact keeps 6 digits.
        assert model.gpu_ns(step) == pytest.approx(expected[k], rel=2e-5)


def test_scikit_learn_conventions() -> None:
    estimator = StepTimeRegressor(window=3, passes=2)
    assert clone(estimator).get_params() == estimator.get_params()
    columns = features(200)
    fitted = estimator.fit(as_matrix(columns), times_ns(columns))
    assert fitted is estimator
    assert fitted.n_features_in_ == len(StepFeatures._fields)
    assert fitted.score(as_matrix(columns), times_ns(columns)) > 0.99


@pytest.mark.parametrize("every", [1, 3])
def test_a_window_never_spans_an_idle_gap(every: int) -> None:
    values = np.arange(1.0, 15.0)[:, None]
    run = np.array([0, 0, 2, 2, 2, 2, 2, 2, 2, 5, 5, 5, 6, 6])
    expected = []
    for number in (0, 2, 5, 6):
        rows = values[run == number, 0]
        expected += [rows[start : start + 3].sum() for start in range(0, len(rows) - 2, every)]
    assert window_sums(values, run, 3, every)[:, 0].tolist() == expected


def test_too_few_steps_are_refused() -> None:
    columns = features(5)
    with pytest.raises(ValueError, match="too few steps"):
        StepTimeRegressor().fit(as_matrix(columns), np.ones(5))


def test_steps_left_out_end_a_run() -> None:
    steps = as_steps(features(10), np.ones(10))
    keep = np.array([1, 1, 0, 1, 1, 1, 0, 0, 1, 1], bool)
    assert steps.take(keep).run.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert len(steps.take(keep)) == 7


def test_errors_are_those_of_the_prediction() -> None:
    columns = features(600)._replace(prefill_seqs=np.zeros(600, np.int64))
    steps = as_steps(columns, np.full(600, 1e7))
    windows, single = errors(steps, np.full(600, 1.1e7), "x")
    assert (windows.n, single.n) == (100, 600)
    for row in (windows, single):
        assert (row.median_abs, row.p90_abs, row.signed_mean) == (0.1, 0.1, 0.1)


def test_held_out_steps_are_not_fitted() -> None:
    """The clock halves its speed after the fitted part: a judge that had seen the rest could not be off by half."""
    columns = features(2000)
    slower = times_ns(columns) * np.where(np.arange(2000) < 1000, 1.0, 2.0)
    steps = as_steps(columns, slower)
    rows = held_out(steps, float(steps.end_s[999]), "later")
    assert [row.signed_mean for row in rows] == [pytest.approx(-0.5, abs=0.03)] * len(rows)
    assert rows[0].n == 1000 // 6


def test_cross_validation_predicts_every_step() -> None:
    columns = features(3000)
    steps = as_steps(columns, times_ns(columns))
    rows = cross_validated(steps, 2.0, 5, "left out")
    assert rows[0].n == 500
    assert rows[0].median_abs < 0.01
