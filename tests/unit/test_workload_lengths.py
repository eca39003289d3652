"""Lengths against the catalogue, published quantiles and closed forms."""

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from simulator.workload import length_names, mean_tokens
from simulator.workload.catalogue import catalogue, prompt_counts
from simulator.workload.distributions import (
    BetaMixture,
    CatalogueShare,
    Constant,
    ConstantShare,
    Empirical,
    LogNormal,
    LogNormalMixture,
    Weibull,
)
from simulator.workload.lengths import CatalogueLengths, CustomLengths, MixtureLengths, Part, Scores

SCORES = Scores.draw(100_000, seed=11)
# ServeGen deepseek-r1, 1.38 M requests (Apache-2.0): published quantiles of the output and of the thinking share.
SERVEGEN_OUTPUT = {0.05: 225, 0.1: 287, 0.25: 427, 0.5: 792, 0.75: 1499, 0.9: 3432, 0.95: 5701, 0.99: 12607}
SERVEGEN_SHARE = {0.05: 0.319, 0.1: 0.361, 0.25: 0.501, 0.5: 0.764, 0.75: 0.896, 0.9: 0.954}


def test_production_outputs_have_servegens_quantiles() -> None:
    output = CatalogueLengths(name="deepseek-r1/production").sample(SCORES).output_tokens
    reached = [(output <= tokens).mean() for tokens in SERVEGEN_OUTPUT.values()]
    # The fit's published KS distance is 0.012; sampling adds at most 0.005.
    np.testing.assert_allclose(reached, list(SERVEGEN_OUTPUT), atol=0.017)
    assert output.mean() == pytest.approx(1527, rel=0.02)
    assert output.max() <= 32_768


def test_production_thinking_share_has_servegens_mean_and_quantiles() -> None:
    share = CatalogueShare().share(SCORES.thinking)
    assert share.mean() == pytest.approx(0.70, abs=0.01)
    assert 0 <= share.min() < share.max() < 1
    reached = [(share <= value).mean() for value in SERVEGEN_SHARE.values()]
    np.testing.assert_allclose(reached, list(SERVEGEN_SHARE), atol=0.035)


def test_production_prompts_reach_long_context_and_stop_at_the_longest_seen() -> None:
    prompt = CatalogueLengths(name="deepseek-r1/production").sample(SCORES).prompt_tokens
    assert np.median(prompt) == pytest.approx(208, rel=0.15)
    assert prompt.max() == 57_284
    assert (prompt >= 32_768).mean() == pytest.approx(0.006, abs=0.001)


def test_the_studys_alternative_has_the_studys_mean_lengths_at_both_budgets() -> None:
    for budget, mean in ((4096, 1678), (8192, 2074)):  # arXiv 2510.18672, 7B on MATH-500
        spec = CatalogueLengths(name="r1-distill-qwen-7b/math500", alternative="study", max_tokens=budget)
        assert mean_tokens(spec).output == pytest.approx(mean, rel=0.02)
        assert spec.tier == "D"


@pytest.mark.parametrize("name", [name for name in length_names() if not name.endswith("mmlu_pro")])
def test_every_catalogue_entry_has_the_quantiles_of_its_parameters(name: str) -> None:
    spec = CatalogueLengths(name=name, log_corr=0, thinking=None, max_tokens=10**9)
    output = spec.sample(SCORES).output_tokens
    entry = catalogue()["lengths"][name]["output"]
    for point in np.quantile(output, [0.1, 0.5, 0.9]) + 0.5:
        if "weibull" in entry:
            shape, scale = entry["weibull"]
            below = 1 - np.exp(-((point / scale) ** shape))
        else:
            parts = entry.get("mix_ln", [[1.0, *entry.get("ln", ())]])
            below = sum(w * ndtr((np.log(point) - mu) / sigma) for w, mu, sigma in parts) / sum(w for w, _, _ in parts)
        assert below == pytest.approx((output <= point).mean(), abs=0.006)


def test_tier_and_source_are_said() -> None:
    spec = CatalogueLengths(name="r1-distill-qwen-7b/math500", max_tokens=8192)
    assert (spec.tier, spec.source) == ("B", "markyx316")
    assert spec.describe() == "r1-distill-qwen-7b/math500 lengths (tier B, markyx316) capped at 8,192"


def test_questions_have_their_counted_lengths_and_the_boxed_instruction() -> None:
    prompt = CatalogueLengths(name="r1-distill-qwen-7b/math500").sample(SCORES).prompt_tokens
    assert set(prompt) == {tokens + 16 for tokens in prompt_counts()["math500"]}
    assert prompt.mean() == pytest.approx(np.mean(prompt_counts()["math500"]) + 16, rel=0.02)


def test_closed_forms() -> None:
    quantiles = np.array([0.01, 0.5, 0.99])
    score = ndtri(quantiles)
    np.testing.assert_array_equal(Constant(value=7).tokens(score), [7, 7, 7])
    np.testing.assert_array_equal(LogNormal(mu=7, sigma=0.5).tokens(score), np.rint(np.exp(7 + 0.5 * score)))
    np.testing.assert_array_equal(Weibull(shape=1.78, scale=7651).tokens(score), np.rint(7651 * (-np.log1p(-quantiles)) ** (1 / 1.78)))
    np.testing.assert_array_equal(Empirical(values=(30, 10, 20)).tokens(score), [10, 20, 30])
    np.testing.assert_array_equal(LogNormal(mu=7, sigma=0.5, at_least=1000, at_most=1100).tokens(score), [1000, 1097, 1100])
    alone, twice = LogNormalMixture(components=((1, 7, 0.5),)), LogNormalMixture(components=((3, 7, 0.5), (1, 7, 0.5)))
    np.testing.assert_allclose(alone.tokens(score), LogNormal(mu=7, sigma=0.5).tokens(score), atol=1)
    np.testing.assert_array_equal(twice.tokens(score), alone.tokens(score))
    np.testing.assert_allclose(BetaMixture(components=((1, 1, 1),)).share(score), quantiles, atol=1e-4)


def test_the_mean_of_a_lognormal_is_its_closed_form() -> None:
    spec = CustomLengths(prompt=Constant(value=100), output=LogNormal(mu=6, sigma=0.6), max_tokens=10**6)
    assert mean_tokens(spec) == pytest.approx((100, np.exp(6 + 0.18)), rel=0.01)


@pytest.mark.parametrize("log_corr", [-0.5, 0.0, 0.38, 0.9])
def test_prompt_and_output_correlate_in_log_space(log_corr: float) -> None:
    lognormal = LogNormal(mu=6.5, sigma=0.8)
    table = CustomLengths(prompt=lognormal, output=lognormal, max_tokens=10**7, log_corr=log_corr).sample(SCORES)
    correlation = np.corrcoef(np.log(table.prompt_tokens), np.log(table.output_tokens))[0, 1]
    assert correlation == pytest.approx(log_corr, abs=0.015)


def test_the_copula_changes_no_marginal() -> None:
    lengths = {corr: CatalogueLengths(name="r1-distill-qwen-7b/math500", log_corr=corr).sample(SCORES) for corr in (0.0, 0.9)}
    np.testing.assert_array_equal(lengths[0.0].prompt_tokens, lengths[0.9].prompt_tokens)
    for q in (0.1, 0.5, 0.9):
        a, b = (np.quantile(table.output_tokens, q) for table in lengths.values())
        assert a == pytest.approx(b, rel=0.03)


def test_the_catalogues_correlation_is_applied_by_default() -> None:
    table = CatalogueLengths(name="r1-distill-qwen-7b/math500", thinking=None).sample(SCORES)
    assert np.corrcoef(np.log(table.prompt_tokens), np.log(table.output_tokens))[0, 1] == pytest.approx(0.36, abs=0.05)


def test_the_cap_truncates_and_shortens_nothing_else() -> None:
    free = CatalogueLengths(name="r1-distill-qwen-7b/math500", max_tokens=10**9).sample(SCORES)
    capped = CatalogueLengths(name="r1-distill-qwen-7b/math500", max_tokens=8192).sample(SCORES)
    np.testing.assert_array_equal(capped.output_tokens, np.minimum(free.output_tokens, 8192))
    assert (capped.max_tokens == 8192).all()


def test_thinking_comes_before_the_first_visible_token() -> None:
    lengths = CustomLengths(prompt=Constant(value=1), output=Constant(value=1000), thinking=ConstantShare(value=0.7), max_tokens=2000)
    table = lengths.sample(SCORES)
    assert (table.visible_token == 701).all()
    cut = lengths.model_copy(update={"max_tokens": 700}).sample(SCORES)
    assert (cut.output_tokens == 700).all()
    assert (cut.visible_token == 701).all()  # above output_tokens: the output ended while thinking


def test_a_think_budget_ends_thinking_and_keeps_the_answer() -> None:
    name = "r1-distill-qwen-7b/math500"
    free = CatalogueLengths(name=name, max_tokens=10**9).sample(SCORES)
    budgeted = CatalogueLengths(name=name, max_tokens=10**9, think_budget_tokens=1024).sample(SCORES)
    np.testing.assert_array_equal(budgeted.visible_token, np.minimum(free.visible_token, 1025))
    answers = [table.output_tokens - table.visible_token for table in (free, budgeted)]
    np.testing.assert_array_equal(*answers)
    assert (answers[0] >= 0).all()
    no_thinking = CatalogueLengths(name=name, think_budget_tokens=0).sample(SCORES)
    assert (no_thinking.visible_token == 1).all()


def test_loops_run_to_the_cap_while_thinking_and_a_think_budget_ends_them() -> None:
    spec = CatalogueLengths(name="qwen3-1.7b/gpqa_diamond", loop_to_cap_rate="catalogue")
    table, free = spec.sample(SCORES), spec.model_copy(update={"loop_to_cap_rate": 0.0}).sample(SCORES)
    looping = SCORES.loop < 0.07
    assert looping.mean() == pytest.approx(0.07, abs=0.005)
    assert (table.output_tokens[looping] == 32_768).all()
    assert (table.visible_token[looping] == 32_769).all()
    np.testing.assert_array_equal(table.output_tokens[~looping], free.output_tokens[~looping])
    ended = spec.model_copy(update={"think_budget_tokens": 100}).sample(SCORES)
    assert (ended.visible_token[looping] == 101).all()


def test_models_that_do_not_think_show_their_first_token() -> None:
    table = CatalogueLengths(name="qwen2.5-14b/math500").sample(SCORES)
    assert (table.visible_token == 1).all()


def test_a_mixture_takes_each_part_in_proportion_to_its_weight() -> None:
    def part(weight: float, tokens: int) -> Part:
        return Part(weight=weight, lengths=CustomLengths(prompt=Constant(value=tokens), output=Constant(value=10 * tokens)))

    table = MixtureLengths(parts={"a": part(6, 1), "b": part(3, 2), "c": part(1, 3)}).sample(SCORES)
    shares = np.bincount(table.prompt_tokens)[1:] / 100_000
    np.testing.assert_allclose(shares, [0.6, 0.3, 0.1], atol=0.008)
    np.testing.assert_array_equal(table.output_tokens, 10 * table.prompt_tokens)


def test_mixtures_of_more_parts_than_numpys_choose_takes() -> None:
    part = Part(weight=1, lengths=CustomLengths(prompt=Constant(value=1), output=Constant(value=1)))
    assert len(MixtureLengths(parts={str(i): part for i in range(40)}).sample(SCORES).output_tokens) == 100_000


def test_mean_tokens_counts_what_is_served() -> None:
    spec = CatalogueLengths(name="deepseek-r1/production")
    assert mean_tokens(spec, max_model_len=4096).prompt < mean_tokens(spec).prompt
    longer = CustomLengths(prompt=Constant(value=90), output=Constant(value=50))
    assert mean_tokens(longer, max_model_len=100) == (90, 10)
    assert np.isnan(mean_tokens(longer, max_model_len=90).prompt)
