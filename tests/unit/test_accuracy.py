"""Published accuracy beside speed: where it is from, what is refused, and which optimization is the cheapest."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest

from simulator.artifacts.accuracy import PATH, change, mean_score, refusal, scores
from simulator.artifacts.models import artifacts
from simulator.config import Config, load
from simulator.errors import UserError
from simulator.plan import plan
from simulator.planning.choice import Choice, candidates, choose
from simulator.reporting.choice_report import facts, page, summary, table, text
from simulator.results import to_json
from validation.study.tables import TABLES, accuracies

CONF = Path(__file__).parents[2] / "conf"
SMALL = """
defaults: [{model: r1-distill-qwen-32b}, {gpu: h100-sxm}, {opt: none}, {slo: interactive}, _self_]
command: plan
engine: {max_num_seqs: 8}
slo: {tpot_ms: {p99: 40}, ttft_s: {p99: 4}}
workload:
  kind: open
  arrivals: {kind: poisson, rate: 10}
  lengths: {kind: custom, prompt: {kind: constant, value: 16}, output: {kind: lognormal, mu: 4.5, sigma: 0.4}}
plan: {hours: 0.005, num_seeds: 2, max_gpus: 12, workers: 1}
"""


def config(model: str = "r1-distill-qwen-7b", *overrides: str) -> Config:
    return load(CONF / "capacity_planning.yaml", [f"model={model}", "opt=none", *overrides])


# -- the table -------------------------------------------------------------------------------------------------------------


def test_the_file_is_what_the_studys_tables_give() -> None:
    assert PATH.read_text(encoding="utf-8") == accuracies().to_csv(index=False, lineterminator="\n")


def test_standard_errors_are_those_of_a_share() -> None:
    found = pd.read_csv(PATH)
    share = found["accuracy"] / 100
    assert ((share * (1 - share) / found["n"]) ** 0.5 * 100).to_numpy() == pytest.approx(found["standard_error"].to_numpy(), abs=0.01)
    # 30 questions of AIME, three times: an error of 5 points, which is what the study's differences of 5 points are worth
    quantized = found[(found["n"] == 90) & found["accuracy"].between(35, 55)]
    assert quantized["standard_error"].between(4.5, 5.5).all()


def test_all_cells_are_shipped_with_their_number_of_answers() -> None:
    cells = pd.read_csv(TABLES)
    assert len(cells) == 384
    assert set(cells["n_req"]) == {90, 300}
    assert set(pd.read_csv(io.StringIO(PATH.read_text()))["source"].str.startswith("arXiv 2510.18672, Table ")) == {True}


def test_the_7b_collapses_under_kv_fp8_and_the_14b_does_not() -> None:
    small, large = change("r1-distill-qwen-7b", "bf16", "fp8"), change("r1-distill-qwen-14b", "bf16", "fp8")
    assert small is not None
    assert large is not None
    assert "GSM8K 83 → 9" in small.text()
    assert small.points < -40
    assert abs(large.points) < 2 * large.mean.error


def test_a_mean_weighs_data_sets_alike_and_its_error_shrinks() -> None:
    found = scores("r1-distill-qwen-14b")
    mean = mean_score(found)
    assert mean.accuracy == pytest.approx(sum(score.accuracy for score in found.values()) / 4)
    assert mean.error < min(score.error for score in found.values())


# -- refusals --------------------------------------------------------------------------------------------------------------


def test_the_collapse_is_refused_with_its_reason_and_how_to_have_it_anyway() -> None:
    asked = config("r1-distill-qwen-7b", "opt=kv_fp8")
    with pytest.raises(UserError, match=r"GSM8K 83 → 9.*Table 12.*plan.max_accuracy_drop=46 allows it"):
        plan(asked)
    assert "\n" not in refusal(asked)
    assert refusal(config("r1-distill-qwen-7b", "opt=kv_fp8", "plan.max_accuracy_drop=46")) == ""


@pytest.mark.parametrize(
    ("model", "overrides", "said"),
    [
        ("r1-distill-qwen-7b", ["opt=none", "plan.max_accuracy_drop=0"], ""),
        ("r1-distill-qwen-7b", ["opt=gptq"], ""),
        ("r1-distill-qwen-7b", ["opt=gptq", "plan.max_accuracy_drop=1"], "gptq weights changes accuracy by -1.6"),
        ("r1-distill-qwen-7b", ["opt=gptq", "plan.max_accuracy_drop=2"], ""),
        ("r1-distill-qwen-14b", ["opt=kv_fp8", "plan.max_accuracy_drop=0"], ""),
        # a combination: one part alone collapses
        ("r1-distill-qwen-7b", ["opt=awq", "opt.kv_cache_dtype=fp8"], "an fp8 KV cache changes accuracy by -45"),
        # a combination of harmless parts, and a model of the same shape: not published
        ("r1-distill-qwen-14b", ["opt=awq", "opt.kv_cache_dtype=fp8"], ""),
        ("r1-distill-qwen-14b", ["opt=awq", "opt.kv_cache_dtype=fp8", "plan.max_accuracy_drop=3"], "is not published"),
        ("qwq-32b", ["opt=awq"], ""),
        ("qwq-32b", ["opt=awq", "plan.max_accuracy_drop=3"], "the accuracy of qwq-32b with awq weights is not published"),
    ],
)
def test_what_is_refused(model: str, overrides: list[str], said: str) -> None:
    found = refusal(config(model, *overrides))
    assert (said in found) if said else found == ""


# -- the cheapest optimization ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("choice") / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def chosen(small: Path) -> Choice:
    return choose(small, ["plan.opts={none: ['opt=none'], awq: ['opt=awq'], int3: ['opt.weights=int3']}"])


def test_all_means_all_that_were_measured() -> None:
    for model in ("r1-distill-qwen-7b", "r1-distill-qwen-32b"):
        asked = config(model, "plan.opts=all")
        of_model = [path for path in artifacts() if path.parts[-3:-1] == ("h100-sxm", model)]
        named = [path for path in of_model if path.stem.endswith("-tp1") or "-tp1-" in path.stem]
        found = candidates(asked)
        assert len(found) == len(named)
        assert next(iter(found)) == "none"
        paths = {config(model, *overrides).cost_model_path for overrides in found.values()}
        assert paths == set(named)
    assert candidates(config("r1-distill-qwen-7b", "plan.opts=all"))["eagle3-k3"][0] == "opt=eagle3"


def test_the_cheapest_is_said_and_what_was_not_measured_is_left_out(chosen: Choice) -> None:
    none, awq, int3 = chosen.options
    assert none.plan is not None
    assert awq.plan is not None
    assert (none.plan.question.seed, none.plan.question.workload) == (awq.plan.question.seed, awq.plan.question.workload)
    assert int3.plan is None
    assert "no cost model" in int3.reason
    best = chosen.best
    assert best is not None
    assert best.gpus == min(gpus for gpus in (none.gpus, awq.gpus) if gpus is not None)
    assert f"You need {best.gpus} GPU" in text(chosen)
    assert "nothing is published" in text(chosen)


def test_of_equals_the_published_model_is_chosen(small: Path) -> None:
    found = choose(small, ["plan.opts={b: ['opt=awq'], a: ['opt=none']}", "workload.arrivals.rate=0.5"])
    assert [option.gpus for option in found.options] == [1, 1]
    assert found.best is found.plain
    assert "without an optimization: no optimization of b needs fewer" in text(found)


def test_of_equals_of_unknown_accuracy_the_one_with_the_most_headroom_is_chosen(small: Path) -> None:
    for opts in ("{a: ['opt=awq'], b: ['opt=fp8']}", "{b: ['opt=fp8'], a: ['opt=awq']}"):
        found = choose(small, [f"plan.opts={opts}", "workload.arrivals.rate=0.5"])
        plans = [option.plan for option in found.options]
        headroom = [plan.chosen.binding.headroom for plan in plans if plan and plan.chosen]
        assert [option.gpus for option in found.options] == [1, 1]
        assert found.best is found.options[headroom.index(max(headroom))]


def test_an_accuracy_demanded_leaves_out_what_nobody_published(small: Path) -> None:
    found = choose(small, ["plan.opts=[none,awq]", "plan.max_accuracy_drop=3", "workload.arrivals.rate=0.5"])
    assert [option.plan is None for option in found.options] == [False, True]
    assert "not published" in found.options[1].reason


def test_what_drafts_were_taken_to_be_worth_is_said_and_who_does_not_know_leaves_them_out(small: Path) -> None:
    opts = "plan.opts={drafts: ['opt=eagle3'], trees: ['opt=eagle3', 'acceptance=eagle3/paper-tree']}"
    found = choose(small, ["model=r1-distill-qwen-7b", opts, "workload.arrivals.rate=0.5"])
    assert [option.plan is None for option in found.options] == [False, True]
    assert "measured with a tree of drafts" in found.options[1].reason
    said = dict(facts(found))
    assert said["drafts"].startswith("drafts: 2.87 tokens a step; the first 1 to 3 are accepted with 81%, 61%, 45% (eagle3/math: ")
    assert said["left out"].startswith("trees: acceptance 'eagle3/paper-tree'")


def test_none_will_do(small: Path) -> None:
    found = choose(small, ["plan.opts=[none,awq]", "slo.tpot_ms.p99=1"])
    assert found.best is None
    assert text(found).startswith("No number of GPUs up to 12 will do")
    assert "plotly" not in page(found)


def test_the_summary_and_the_page_hold_every_optimization(chosen: Choice) -> None:
    found = summary(chosen)
    assert [option["name"] for option in found["options"]] == ["none", "awq", "int3"]
    assert found["best"] == (chosen.best.name if chosen.best else None)
    assert "NaN" not in to_json(found)
    html = page(chosen)
    assert html.count('class="plotly-graph-div"') == 1
    assert html.count("<tr") == len(table(chosen))


def test_a_mistake_names_the_optimization(small: Path) -> None:
    with pytest.raises(UserError, match=r"plan.opts: awk: .*opt/awk"):
        choose(small, ["plan.opts=[awk]"])
