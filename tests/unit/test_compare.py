"""A comparison: paired runs, intervals, and verdicts on published findings."""

from __future__ import annotations

from math import inf, isnan, nan
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from simulator.comparing.compare import Comparison, compare
from simulator.comparing.page import page
from simulator.comparing.quantity import QUANTITIES, quantity
from simulator.comparing.report import summary, table, text
from simulator.comparing.verdict import Claim, verdict
from simulator.compose import merged
from simulator.errors import UserError
from simulator.planning.interval import Interval
from simulator.results import to_json

OWN = """
defaults: [{model: r1-distill-qwen-7b}, {gpu: h100-sxm}, {opt: none}, {workload: gsm8k}, {slo: interactive}, _self_]
command: compare
workload: {arrivals: {rate: 20}}
run: {num_requests: 40}
compare:
  baseline: bf16
  variants:
    same: []
    one_seat: [engine.max_num_seqs=1]
    kv_fp8: [opt=kv_fp8]
    int3: [opt.weights=int3]
  metrics: [duration_s, tpot_ms.mean, e2e_s.p99, kv_usage.mean, running.max, preemptions]
  num_seeds: 4
  workers: 1
  claims:
    - {variant: one_seat, metric: duration_s, low: 2, source: by definition}
    - {variant: one_seat, metric: running.max, of: value, low: 0.5, high: 1.5, source: by definition}
    - {variant: same, metric: duration_s, low: 1.5, high: 2, source: a wrong paper, caveat: other GPUs}
    - {variant: int3, metric: duration_s, low: 0.56, high: 0.65, source: Table 10}
    - {variant: kv_fp8, metric: kv_usage.mean, source: a poster, unjudged: it names no pool}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compare") / "own.yaml"
    path.write_text(OWN)
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Nothing but the baseline and itself."""
    start, _, _ = OWN.partition("    same: []\n")
    path = tmp_path / "small.yaml"
    path.write_text(f"{start}    same: []\n  num_seeds: 4\n  workers: 1\n  metrics: [duration_s]\n")
    return path


@pytest.fixture(scope="module")
def compared(config: Path) -> Comparison:
    return compare(config)


# -- intervals -------------------------------------------------------------------------------------------------------------


def test_the_interval_of_differences_is_the_paired_t_tests() -> None:
    rng = np.random.default_rng(5)
    base = rng.normal(10, 3, 9)
    values = base + rng.normal(0.5, 0.2, 9)
    found = Interval.of_differences(values.tolist(), base.tolist(), 0.9)
    expected = stats.ttest_rel(values, base).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    unpaired = stats.ttest_ind(values, base).confidence_interval(0.9)
    assert found.high - found.low < (unpaired.high - unpaired.low) / 5


def test_ratios_are_paired_and_geometric() -> None:
    base = [1.0, 10.0, 100.0]
    found = Interval.of_ratios([2.0, 20.0, 200.0], base, 0.95)
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))
    assert Interval.of_ratios([2.0, 0.5], [1.0, 1.0], 0.95).value == pytest.approx(1)


def test_the_interval_of_ratios_holds_what_it_says() -> None:
    rng, held = np.random.default_rng(1), 0
    for _ in range(2000):
        base = rng.lognormal(0, 1, 6)
        found = Interval.of_ratios((0.7 * base * rng.lognormal(0, 0.1, 6)).tolist(), base.tolist(), 0.9)
        held += found.low <= 0.7 <= found.high
    assert 0.88 < held / 2000 < 0.92


def test_one_run_or_an_infinite_one_tells_no_interval() -> None:
    assert isnan(Interval.of_mean([3.0], 0.95).low)
    assert isnan(Interval.of_mean([3.0, inf], 0.95).low)
    assert isnan(Interval.of_ratios([0.0, 1.0], [1.0, 1.0], 0.95).value)


def test_independent_figures_differ_by_their_errors_in_squares() -> None:
    one, other = Interval(80.0, 77.0, 84.0), Interval(50.0, 46.0, 53.0)
    found = one.minus(other)
    assert (found.value, found.low, found.high) == pytest.approx((30, 30 - 18**0.5, 30 + 32**0.5))
    ratio = Interval(4.0, 2.0, 8.0).over(Interval(2.0, 2.0, 2.0))
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2, 1, 4))
    assert isnan(one.over(Interval(0.0, -1.0, 1.0)).value)


# -- verdicts --------------------------------------------------------------------------------------------------------------


def claim(low: float | None = 0.5, high: float | None = 0.8, **other: str) -> Claim:
    return Claim.model_validate({"variant": "a", "metric": "duration_s", "low": low, "high": high, "source": "Table 1", **other})


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (Interval(0.6, 0.5, 0.8), "agrees"),
        (Interval(0.9, 0.81, 1.0), "disagrees"),
        (Interval(0.4, 0.3, 0.49), "disagrees"),
        (Interval(0.79, 0.75, 0.83), "cannot be judged"),
        (Interval(0.6, 0.3, 0.9), "cannot be judged"),
        (Interval(0.6), "agrees"),
        (Interval(0.9), "disagrees"),
        (Interval(nan), "cannot be judged"),
    ],
)
def test_a_verdict_is_about_the_whole_interval(found: Interval, word: str) -> None:
    assert verdict(claim(), found).word == word


def test_an_open_range_and_reasons() -> None:
    assert verdict(claim(high=None), Interval(9, 8, 10)).word == "agrees"
    assert verdict(claim(caveat="other GPUs"), Interval(9, 8, 10)).reason == "other GPUs"
    assert verdict(claim(unjudged="misprinted"), Interval(0.6, 0.6, 0.6)).reason == "misprinted"
    assert verdict(claim(), Interval(0.6, 0.6, 0.6), hindrance="a was not measured").word == "cannot be judged"
    assert "0.8: more seeds" in verdict(claim(), Interval(0.79, 0.75, 0.83)).reason


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"low": None, "high": None}, "low, high"), ({"low": 2, "high": 1}, "above"), ({"metric": "e2e_s.p98"}, "e2e_s.p9")],
)
def test_a_claim_that_says_nothing_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Claim.model_validate({"variant": "a", "metric": "duration_s", "low": 0.5, "source": "x", **fields})


# -- comparisons -----------------------------------------------------------------------------------------------------------


def test_the_same_service_is_the_same_seed_by_seed(compared: Comparison) -> None:
    for metric in ("duration_s", "tpot_ms.mean", "e2e_s.p99"):
        ratio = compared.row("same", metric).ratio
        assert (ratio.value, ratio.low, ratio.high) == (1, 1, 1)
    assert compared.row("same", "kv_usage.mean").difference.value == 0


def test_variants_meet_the_same_traffic(compared: Comparison) -> None:
    assert len(set(compared.traffic.values())) == 1
    durations = [compared.runs["bf16", seed]["duration_s"] for seed in compared.seeds]
    assert len(set(durations)) == 4
    # Unpaired, the ratio would be √2 times as uncertain as one of its sides.
    ratio, alone = compared.row("kv_fp8", "tpot_ms.mean").ratio, compared.row("bf16", "tpot_ms.mean").level
    assert ratio.high - ratio.low < (alone.high - alone.low) / alone.value


def test_the_verdicts(compared: Comparison) -> None:
    words = [judged.verdict.word for judged in compared.judged]
    assert words == ["agrees", "agrees", "disagrees", "cannot be judged", "cannot be judged"]
    assert [judged.verdict.reason for judged in compared.judged] == ["", "", "other GPUs", "int3 is left out", "it names no pool"]


def test_what_was_not_measured_is_an_answer(compared: Comparison) -> None:
    [int3] = [variant for variant in compared.variants if variant.name == "int3"]
    assert int3.config is None
    assert "bf16-kv_fp8-tp1" in int3.missing
    assert isnan(compared.row("int3", "duration_s").level.value)
    assert "left out" in text(compared)


def test_a_baseline_that_was_not_measured_leaves_the_levels(small: Path) -> None:
    claimed = "compare.claims=[{variant: kv, metric: duration_s, low: 1, source: x}]"
    found = compare(small, ["opt.weights=int3", "compare.variants.kv=['opt=kv_fp8','opt.weights=bf16']", claimed])
    assert [bool(variant.missing) for variant in found.variants] == [True, True, False]
    assert found.row("kv", "duration_s").level.value > 0
    assert [(judged.verdict.word, judged.verdict.reason) for judged in found.judged] == [("cannot be judged", "bf16 is left out")]


def test_accuracy_needs_no_cost_model(small: Path) -> None:
    asked = [
        "model=qwen2.5-14b",
        "compare.variants.r1=['model=r1-distill-qwen-14b','opt.weights=awq']",
        "compare.metrics=[accuracy.aime24]",
    ]
    found = compare(small, ["gpu=cpu", *asked])
    row = found.row("r1", "accuracy.aime24")
    assert row.change.value == pytest.approx(34.4 - 3.5, abs=0.1)
    assert 20 < row.change.low < row.change.value < row.change.high < 40
    assert found.runs == {}
    assert "+30.9 points" in text(found)


def test_processes_change_nothing(config: Path, compared: Comparison) -> None:
    assert compare(config, ["compare.workers=2"]).runs == compared.runs


def test_a_window_measures_what_is_sent_in_it(small: Path) -> None:
    assert compare(small, ["compare.window_s=[0.5,1.5]"]).row("bf16", "duration_s").level.value == 1.0


def test_the_command_lines_overrides_hold_unless_a_variant_has_its_own(small: Path) -> None:
    assert merged(["a.b=1", "++opt=fp8", "c=2"], ["opt=awq"]) == ["a.b=1", "c=2", "opt=awq"]
    found = compare(small, ["compare.variants.kv=['opt.kv_cache_dtype=fp8','seed=9']", "run.num_requests=7", "seed=3"])
    kv = found.variants[2].config
    assert kv is not None
    assert (kv.opt.kv_cache_dtype, kv.run.num_requests, list(found.seeds)) == ("fp8", 7, [3, 4, 5, 6])


SHORT = """
defaults: [{model: r1-distill-qwen-7b}, {gpu: h100-sxm}, {slo: interactive}, _self_]
command: compare
engine: {max_num_seqs: 16}
workload:
  kind: open
  arrivals: {kind: poisson, rate: 10}
  lengths: {kind: custom, prompt: {kind: constant, value: 16}, output: {kind: lognormal, mu: 4.5, sigma: 0.4}}
plan: {hours: 0.005, num_seeds: 2, max_gpus: 8, workers: 1}
compare: {metrics: [gpus], variants: {busy: [workload.arrivals.rate=40], overrun: [workload.arrivals.rate=400]}}
"""


def test_a_plan_is_compared_in_gpus(tmp_path: Path) -> None:
    path = tmp_path / "short.yaml"
    path.write_text(SHORT)
    found = compare(path)
    busy, base, overrun = (found.row(name, "gpus") for name in ("busy", "baseline", "overrun"))
    assert 1 <= base.level.value < busy.level.value
    assert busy.difference.value == busy.level.value - base.level.value
    assert isnan(overrun.level.value)
    assert found.runs == {}
    assert "no number will do" in text(found)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["compare.variants.a=['opt=awk']"], "compare.variants.a: .*opt/awk"),
        (["compare.variants.bf16=[]"], "bf16"),
        (["~compare.variants", "compare.claims=[]"], "compare.variants"),
        (["compare.metrics=[duration]"], "duration.*did you mean duration_s"),
        (["compare.claims=[{variant: b, metric: duration_s, low: 1, source: x}]"], "'b'"),
        (["compare.claims=[{variant: int3, metric: ttft_s.p50, low: 1, source: x}]"], "ttft_s.p50"),
        (["compare=null"], "compare.variants"),
        (["run.num_requests=null"], "num_requests"),
        (["slo=null", "compare.metrics=[gpus]", "compare.claims=[]"], "gpus"),
    ],
)
def test_mistakes_name_the_place(config: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        compare(config, overrides)


# -- reports ---------------------------------------------------------------------------------------------------------------


def test_the_text_has_a_row_a_metric_and_variant_and_the_verdicts(compared: Comparison) -> None:
    said = text(compared)
    assert len(table(compared)) == 1 + len(compared.variants) * len(compared.options.metrics)
    assert "2 agree, 1 disagrees, 2 cannot be judged" in " ".join(said.split())
    assert "agrees: one_seat, running time to baseline: published at least × 2.00 (by definition), simulated × " in said
    assert "disagrees: same, running time to baseline: published × 1.50 to × 2.00 (a wrong paper), simulated × 1.00" in said
    assert max(map(len, said.splitlines())) <= 120


def test_the_summary_is_json_with_every_figure(compared: Comparison) -> None:
    found = summary(compared)
    assert len(found["rows"]) == len(compared.rows)
    assert {claim["verdict"] for claim in found["claims"]} == {"agrees", "disagrees", "cannot be judged"}
    assert "NaN" not in to_json(found)


def test_the_page_draws_a_figure_a_metric_that_changed(compared: Comparison) -> None:
    html = page(compared)
    ours = html.replace(html[html.index("<script>") : html.index("</script>")], "")
    assert "src=" not in ours
    # preemptions: there are none, so there is no ratio to draw
    assert html.count('class="plotly-graph-div"') == 5
    assert "Published findings" in html


def test_every_quantity_is_a_figure_of_a_run(config: Path) -> None:
    names = [name for name in QUANTITIES if quantity(name).key]
    found = compare(
        config, [f"compare.metrics=[{','.join(names)}]", "compare.variants={same: []}", "compare.claims=[]", "compare.num_seeds=2"]
    )
    missing = [name for name in names if isnan(found.row("bf16", name).level.value)]
    assert missing == []
    assert [quantity(name).text(nan) for name in names] == ["–"] * len(names)
