"""Predictors: their stated errors, and that nobody hears more than they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator.policies.predictor import ByDataSet, Noisy, Perfect, expected_tokens, foretell, prediction_error
from simulator.step.sequence import Sequence
from simulator.workload import Workload, generate, validate

LENGTHS = {"kind": "catalogue", "max_tokens": 8192}
MIXTURE = {
    "kind": "mixture",
    "parts": {
        "math500": {"weight": 0.7, "lengths": {**LENGTHS, "name": "r1-distill-qwen-7b/math500"}},
        "aime24": {"weight": 0.3, "lengths": {**LENGTHS, "name": "r1-distill-qwen-7b/aime24"}, "priority": 2},
    },
}
SPEC = validate({"kind": "open", "arrivals": {"kind": "preset", "name": "reasoning", "rate": 5.0}, "lengths": MIXTURE, "priority": 1})


def traffic(num: int = 3000, seed: int = 5) -> Workload:
    return generate(SPEC, seed, max_model_len=32768, num_requests=num)


def test_perfect_knows_all() -> None:
    told = foretell(traffic(), Perfect(), SPEC, 5, 32768).requests
    assert (told.predicted_tokens == told.output_tokens).all()
    assert prediction_error(told) == {"median_relative_error": 0.0, "rank_correlation": pytest.approx(1.0)}


def test_noise_is_lognormal_of_the_given_spread_and_belongs_to_the_request() -> None:
    told = foretell(traffic(), Noisy(sigma=0.4), SPEC, 5, 32768).requests
    inside = (told.predicted_tokens < told.max_tokens) & (told.output_tokens < 2000)  # neither cut nor selected by the cut
    errors = np.log(told.predicted_tokens[inside] / told.output_tokens[inside])
    assert errors.std() == pytest.approx(0.4, rel=0.06)
    assert errors.mean() == pytest.approx(0, abs=0.03)
    fewer = foretell(traffic(100), Noisy(sigma=0.4), SPEC, 5, 32768).requests
    assert (fewer.predicted_tokens == told.predicted_tokens[:100]).all()
    assert 0.7 < prediction_error(told)["rank_correlation"] < 0.98


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_a_data_set_has_one_figure_from_other_requests(statistic: str) -> None:
    told = foretell(traffic(), ByDataSet(statistic=statistic), SPEC, 5, 32768).requests
    assert told.client_names == ("math500", "aime24")
    for client in (0, 1):
        predicted = np.unique(told.predicted_tokens[told.client == client])
        assert len(predicted) == 1
        true = getattr(np, statistic)(told.output_tokens[told.client == client])
        assert predicted[0] == pytest.approx(true, rel=0.1)
    # what happens to be asked this time says nothing
    shorter = replace(traffic(), requests=replace(traffic().requests, output_tokens=np.ones(3000, np.int64)))
    again = foretell(shorter, ByDataSet(statistic=statistic), SPEC, 5, 32768).requests
    assert (again.predicted_tokens == told.predicted_tokens).all()


def test_parts_of_a_mixture_have_priorities_of_their_own() -> None:
    requests = traffic().requests
    assert set(requests.priority[requests.client == 0]) == {1}
    assert set(requests.priority[requests.client == 1]) == {3}


def test_batches_by_predicted_length_hold_the_same_requests() -> None:
    spec = validate({"kind": "barrier", "batch_size": 16, "batching": "by_predicted_length", "lengths": MIXTURE})
    drawn = generate(spec, 1, max_model_len=32768, num_requests=320)
    sorted_ = foretell(drawn, Perfect(), spec, 1, 32768).requests
    assert (np.diff(sorted_.output_tokens) >= 0).all()
    assert sorted(sorted_.request_id) == sorted(drawn.requests.request_id)


@pytest.mark.parametrize(
    ("emitted", "expected"), [(0, 100), (99, 100), (100, 200), (199, 200), (200, 400), (799, 800), (800, 900), (950, 900)]
)
def test_a_prediction_that_is_passed_is_doubled(emitted: int, expected: int) -> None:
    sequence = Sequence(0, prompt_tokens=10, output_tokens=890, max_tokens=900, predicted_tokens=100)
    sequence.emitted_tokens = emitted
    assert sequence.expected_tokens(step=3) == expected
    assert sequence.predicted_remaining(step=3) == max(expected - emitted, 0)
    assert expected_tokens(np.array([100]), np.array([emitted]), np.array([900])).tolist() == [expected]
