"""Acceptance models: closed forms against draws, vLLM's readings of its options, published figures and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from simulator.drafts.acceptance import AcceptanceSpec, published
from simulator.engine import EngineConfig, GraphMode, SpeculativeConfig
from simulator.errors import UserError
from simulator.speculation import Acceptance, Drafting, Drafts

EAGLE = SpeculativeConfig(method="eagle3", num_speculative_tokens=3)
NGRAM = SpeculativeConfig(method="ngram", num_speculative_tokens=3)


def emitted(acceptance: Acceptance, requests: int, tokens: int) -> np.ndarray:
    """float64[requests]: mean tokens of a step that begins at each of `tokens` positions."""
    streams = [Drafts(acceptance, 7, row) for row in range(requests)]
    return np.array([np.mean([1 + s.accepted(t) * s.proposed(t) for t in range(tokens)]) for s in streams])


@pytest.mark.parametrize(
    "acceptance",
    [
        Acceptance((0.73, 0.52, 0.35)),
        Acceptance((0.6, 0.1), proposed=0.4),
        Acceptance((0.73, 0.52, 0.35), correlation=0.4),
        Acceptance((0.5, 0.5), proposed=0.7, correlation=0.9),
    ],
)
def test_mean_emitted_is_that_of_the_draws(acceptance: Acceptance) -> None:
    means = emitted(acceptance, 3000, 200)
    standard_error = means.std(ddof=1) / np.sqrt(len(means))
    assert abs(means.mean() - acceptance.mean_emitted) < stats.norm.ppf(0.9995) * standard_error
    assert standard_error < 0.02


def test_requests_differ_as_much_as_the_closed_form_says() -> None:
    acceptance = Acceptance((0.73, 0.52, 0.35), correlation=0.4)
    means = emitted(acceptance, 2000, 1000)
    within = 1.2 / np.sqrt(1000)  # a step's own spread, averaged over the request's steps
    assert means.std() == pytest.approx(np.hypot(acceptance.request_std, within), rel=0.05)
    assert acceptance.request_std > 0.5
    assert Acceptance((0.73, 0.52, 0.35)).request_std == pytest.approx(0, abs=1e-6)


def test_tokens_per_step_of_a_run_is_the_harmonic_mean_over_requests() -> None:
    acceptance = Acceptance((0.73, 0.52, 0.35), correlation=0.4)
    means = emitted(acceptance, 3000, 500)
    assert 1 / np.mean(1 / means) == pytest.approx(acceptance.tokens_per_step, rel=0.02)
    assert acceptance.tokens_per_step < acceptance.mean_emitted - 0.1
    assert Acceptance((0.73, 0.52, 0.35)).tokens_per_step == pytest.approx(2.6)


def test_acceptance_grows_along_the_output() -> None:
    acceptance = Acceptance((0.5, 0.4), growth=((0, 0.5), (1000, 1.5)))
    streams = [Drafts(acceptance, 0, row) for row in range(4000)]
    for token, expected in ((0, 0.45), (500, 0.9), (1000, 1.35), (3000, 1.35)):
        accepted = np.array([s.accepted(token) for s in streams])
        assert abs(accepted.mean() - expected) < stats.norm.ppf(0.9995) * accepted.std() / np.sqrt(len(accepted))
    assert acceptance.mean_emitted == pytest.approx(1.45)


def test_a_draw_depends_on_request_and_position_alone() -> None:
    drafting = Drafting(Acceptance((0.7, 0.5), correlation=0.3), 3)
    forward, backward = drafting.of(5), drafting.of(5)
    ahead = [forward.accepted(token) for token in range(2000)]
    assert [backward.accepted(token) for token in reversed(range(2000))] == ahead[::-1]
    assert [drafting.of(6).accepted(token) for token in range(2000)] != ahead


@pytest.mark.parametrize(
    ("length", "drafts", "rates"), [(2.5, 3, (1.0, 0.5, 0.0)), (1.0, 2, (0.0, 0.0)), (3.0, 2, (1.0, 1.0)), (1.6, 1, (0.6,))]
)
def test_a_length_is_read_as_vllm_reads_it(length: float, drafts: int, rates: tuple[float, ...]) -> None:
    acceptance = Acceptance.of_length(length, drafts)
    assert acceptance.rates == pytest.approx(rates)
    assert acceptance.mean_emitted == pytest.approx(length)


def test_rates_are_unconditional_as_vllms_are() -> None:
    assert Acceptance((0.8, 0.4, 0.0, 0.0)).conditional == pytest.approx((0.8, 0.5, 0.0, 0.0))


def test_a_published_mean_becomes_one_rate_for_every_draft() -> None:
    acceptance = Acceptance.steady(2.62, 3)
    assert acceptance.mean_emitted == pytest.approx(2.62)
    assert acceptance.conditional == pytest.approx([acceptance.rates[0]] * 3)
    assert Acceptance.steady(4.0, 3).rates == pytest.approx((1, 1, 1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Acceptance((0.5, 0.6)), "do not increase"),
        (lambda: Acceptance((1.2,)), "probabilities"),
        (lambda: Acceptance((0.5,), correlation=1.0), "below 1"),
        (lambda: Acceptance((0.5,), proposed=0.0), "share"),
        (lambda: Acceptance((0.5,), growth=((5, 1.0), (1, 1.0))), "increasing"),
        (lambda: Acceptance.of_length(4.2, 3), "1 to 4"),
    ],
)
def test_impossible_figures_are_refused_in_one_line(make: object, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        make()  # type: ignore[operator]
    assert "\n" not in str(error.value)


# -- configurations -----------------------------------------------------------------------------------------------------


def test_a_method_has_the_default_that_was_measured_as_served() -> None:
    eagle = AcceptanceSpec().resolve(EAGLE)
    assert eagle.rates == (0.81, 0.61, 0.45)
    assert eagle.mean_emitted == pytest.approx(2.87)  # as published for K = 3
    ngram = AcceptanceSpec().resolve(NGRAM)
    assert 1.46 <= ngram.mean_emitted <= 1.72
    assert ngram.proposed < 0.5


def test_given_figures_go_before_published_ones() -> None:
    assert AcceptanceSpec(rates=[0.5, 0.2, 0.1]).resolve(EAGLE).rates == (0.5, 0.2, 0.1)
    assert AcceptanceSpec(length=2.5, correlation=0.2, proposed=0.5).resolve(EAGLE) == Acceptance((1.0, 0.5, 0.0), 0.5, 0.2)
    assert AcceptanceSpec.model_validate("eagle3/coding").resolve(EAGLE).rates[0] == 0.79


REFUSED = {name: entry for name, entry in published()["published"].items() if "refused" in entry}


@pytest.mark.parametrize("name", REFUSED)
def test_unfit_figures_are_refused_with_the_reason_and_what_is_valid(name: str) -> None:
    speculative = SpeculativeConfig(method=REFUSED[name]["method"], num_speculative_tokens=3)
    with pytest.raises(UserError) as error:
        AcceptanceSpec(name=name).resolve(speculative)
    assert REFUSED[name]["refused"] in str(error.value)
    assert "valid for" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_the_figures_were_taken_from_is_told() -> None:
    entries = published()["published"]
    assert all(entry["source"] and entry["model"] and entry["text"] for entry in entries.values())
    assert {"eagle3/paper-tree", "eagle3/mt-bench-greedy", "ngram/aime-h100"} <= set(REFUSED)
    assert all(entries[name] for name in published()["defaults"].values() if name)
    for entry in entries.values():
        if "rates" in entry:
            Acceptance(tuple(entry["rates"]))


@pytest.mark.parametrize(
    ("spec", "speculative", "words"),
    [
        (
            AcceptanceSpec(),
            SpeculativeConfig(method="draft_model", num_speculative_tokens=3),
            "nothing published is a default for draft_model",
        ),
        (AcceptanceSpec(), SpeculativeConfig(method="eagle3", num_speculative_tokens=9), "known for 7 drafts"),
        (AcceptanceSpec(name="eagle3/gsm8k-h100"), EAGLE, "more than num_speculative_tokens"),
        (AcceptanceSpec(name="eagle3/math"), NGRAM, "no such figure; valid for ngram: ngram/study"),
        (AcceptanceSpec(rates=[0.5]), EAGLE, "has 1 entries"),
    ],
)
def test_what_is_not_known_is_refused(spec: AcceptanceSpec, speculative: SpeculativeConfig, words: str) -> None:
    with pytest.raises(UserError, match=words):
        spec.resolve(speculative)


def test_a_mean_beyond_the_bonus_is_used_where_it_can_be() -> None:
    assert AcceptanceSpec(name="eagle3/gsm8k-h100").resolve(
        EAGLE.model_copy(update={"num_speculative_tokens": 5})
    ).mean_emitted == pytest.approx(4.02)


# -- the engine's options -----------------------------------------------------------------------------------------------


def engine(method: str, drafts: int, **options: object) -> EngineConfig:
    return EngineConfig(num_gpu_blocks=100_000, speculative={"method": method, "num_speculative_tokens": drafts}, **options)  # type: ignore[arg-type]


def test_ngram_and_draft_models_are_scheduled_synchronously() -> None:
    assert engine("eagle3", 3).async_scheduling
    assert not engine("ngram", 3).async_scheduling
    assert not engine("draft_model", 3).async_scheduling
    with pytest.raises(ValueError, match="vLLM has none with ngram"):
        engine("ngram", 3, async_scheduling=True)


def test_a_draft_model_costs_every_seat_a_token_of_the_budget() -> None:
    assert engine("draft_model", 3).max_num_scheduled_tokens == 8192 - 1024
    assert engine("eagle3", 3).max_num_scheduled_tokens == 8192
    with pytest.raises(ValueError, match="must exceed max_num_seqs"):
        engine("draft_model", 3, max_num_batched_tokens=1024)


def test_cuda_graphs_have_multiples_of_a_verify_steps_tokens() -> None:
    by_v2 = engine("eagle3", 2, max_num_seqs=100).graphs
    assert by_v2.full_sizes[:6] == [3, 6, 9, 18, 24, 33]
    assert by_v2.piecewise_sizes[:4] == [1, 2, 4, 8]
    by_v1 = engine("ngram", 2, max_num_seqs=100).graphs
    assert by_v1.piecewise_sizes[:6] == by_v1.full_sizes[:6] == [3, 6, 9, 18, 24, 33]
    assert by_v1.full_sizes[-1] <= 300 < by_v1.piecewise_sizes[-1] <= 512
    assert by_v1.pad(12, True) == (18, GraphMode.FULL)
    assert by_v1.pad(11, False) == (18, GraphMode.PIECEWISE)
    # Model runner V2 takes the next size captured for anything, and asks only then whether it serves this batch.
    assert by_v2.pad(12, True) == (16, GraphMode.PIECEWISE)
    assert by_v2.pad(17, True) == (18, GraphMode.FULL)
    assert by_v2.pad(17, False) == (17, GraphMode.NONE)
    assert engine("eagle3", 3).graphs.pad(4 * 25, True) == (104, GraphMode.FULL)
