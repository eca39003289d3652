"""What an optimization does to a step: ratios of cost models, where they cross 1, and that words and pictures say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from profiler.effect import EQUAL, Effect, Measured, Setting, measured
from profiler.effect_figure import figure
from profiler.effect_words import speed, words
from profiler.picture import main, markdown
from simulator.artifacts.artifact import Regime
from simulator.artifacts.models import MODELS
from simulator.cost import CostModel
from simulator.engine import EngineConfig

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "optimizations"


def setting(weights: str, one_ns: float, per_seq_ns: float, *, blocks: int = 100_000, tp: int = 1) -> Setting:
    """Decode steps of `one_ns` + `per_seq_ns` a sequence, whatever the graph."""
    regime = Regime(gpu_ns={"one": one_ns, "decode_seqs": per_seq_ns, "prefill_tokens": per_seq_ns})
    artifact = CostModel.constant(1).artifact.model_copy(
        update={
            "weights": weights,
            "tensor_parallel_size": tp,
            "step": {"none": regime, "piecewise": regime, "full": regime},
            "domain": {"decode_seqs": (0.0, 1024.0)},
        }
    )
    return Setting(CostModel(artifact), EngineConfig(num_gpu_blocks=blocks), pd.DataFrame())


def compared(*settings: Setting) -> Measured:
    return Measured("g", "m", list(settings))


@pytest.fixture(scope="module")
def shipped() -> list[Measured]:
    return list(measured(MODELS))


def test_a_setting_is_as_fast_as_itself() -> None:
    effect = Effect(setting("a", 1e7, 1e4), setting("b", 1e7, 1e4))
    for ratio in (effect.decode, effect.prefill):
        assert (ratio.times == 1).all()
        assert ratio.slower == []
    assert effect.pool == effect.tokens_per_gpu == 1


def test_the_crossover_lies_where_the_two_lines_cross() -> None:
    """5 ms + 0.02 ms a sequence against 10 ms: more than EQUAL slower beyond 265 sequences, of which 272 is the next captured size."""
    effect = compared(setting("bf16", 1e7, 0), setting("awq", 5e6, 2e4)).effects[0]
    ((first, last, worst),) = effect.decode.slower
    assert 5 + 0.02 * 256 < 10 * (1 + EQUAL) < 5 + 0.02 * first
    assert (first, last) == (272, 1024)
    assert worst == pytest.approx((5 + 0.02 * 1024) / 10)
    text = words(compared(setting("bf16", 1e7, 0), setting("awq", 5e6, 2e4)))[1]
    assert "a decode step is 1.99 × faster at batch 1, 2.55 × slower at 1,024; slower from 272 on by up to 2.55 ×." in text


def test_a_pool_that_is_full_ends_what_is_said_of_a_batch() -> None:
    """39 sequences of 1,025 tokens take 65 blocks each."""
    small = setting("bf16", 1e7, 0, blocks=2544)
    effect = compared(small, setting("awq", 5e6, 2e4)).effects[0]
    assert small.seats == effect.decode.within == 39
    text = words(compared(small, setting("awq", 5e6, 2e4)))[1]
    assert "at 39, where bf16's pool is full; slower from 272 on (had bf16 the memory for it)" in text


def test_one_faster_size_does_not_end_a_range() -> None:
    ratio = Effect(setting("a", 1e7, 0), setting("b", 1e7, 0)).decode
    times = np.ones(len(ratio.sizes))
    times[[4, 6, 9]] = 1.1, 1.2, 1.3
    changed = type(ratio)(ratio.sizes, times, ratio.within, ratio.measured)
    assert changed.slower == [(ratio.sizes[4], ratio.sizes[6], 1.2), (ratio.sizes[9], ratio.sizes[9], 1.3)]


def test_each_is_compared_with_bf16_on_as_many_gpus() -> None:
    one, two, awq, awq_two = (setting(name, 1e7, 0, tp=tp) for name, tp in (("bf16", 1), ("bf16", 2), ("awq", 1), ("awq", 2)))
    several = compared(one, two, awq, awq_two)
    assert [(effect.setting, effect.base) for effect in several.effects] == [(two, one), (awq, one), (awq_two, two)]
    assert compared(awq).effects == []
    # Where there is no bf16 (one GPU is too small for it), with what was measured first.
    assert [(effect.setting, effect.base) for effect in compared(awq, awq_two).effects] == [(awq_two, awq)]
    assert "against" not in words(compared(awq))[0]


@pytest.mark.parametrize(
    ("ratio", "said"), [(0.5, "2.00 × faster"), (1.25, "1.25 × slower"), (1.01, "equally fast"), (0.99, "equally fast")]
)
def test_speeds_in_words(ratio: float, said: str) -> None:
    assert speed(ratio) == said


def test_measured_steps_lie_on_the_curves_beside_them(shipped: list[Measured]) -> None:
    for each in shipped:
        for one in each.settings:
            for seconds, of in ((one.measured_decode_s, one.decode_s), (one.measured_prefill_s, one.prefill_s)):
                assert len(seconds) >= 5, one.name
                off = [of(int(size)) / value - 1 for size, value in seconds.items()]
                assert np.median(np.abs(off)) < 0.02, (each.model, one.name)


def test_curves_and_measured_steps_agree_on_what_an_optimization_does(shipped: list[Measured]) -> None:
    effects = [effect for each in shipped for effect in each.effects]
    assert effects
    for effect in effects:
        for ratio in (effect.decode, effect.prefill):
            if len(ratio.measured):
                assert ratio.deviation < 0.03, effect.setting.name


def test_a_picture_has_every_setting_in_it(shipped: list[Measured]) -> None:
    each = max(shipped, key=lambda one: len(one.settings))
    drawn = figure(each)
    assert {trace.name for trace in drawn.data if trace.showlegend} == {one.name for one in each.settings}
    assert len(drawn.data[-1].x) == len(each.settings)


def test_the_stored_page_is_up_to_date(shipped: list[Measured]) -> None:
    page = (PAGE / "README.md").read_text()
    assert page == markdown([each for each in shipped if each.effects]), (
        "run `python -m profiler.picture out=docs/optimizations pictures=true`"
    )
    assert {path.name for path in PAGE.glob("*.webp")} == {line.split("](")[1][:-1] for line in page.splitlines() if line.startswith("![")}


def test_the_command_writes_one_page_that_needs_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"out={tmp_path}", "context=4096"]) == 0
    text = (tmp_path / "report.html").read_text()
    assert "https://" not in text.split("</script>", 2)[2]
    assert "4,096 tokens of context" in text
    assert str(tmp_path / "report.html") in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["x"], ["x=1"], ["context=many"], ["context=0"], ["pictures=perhaps"], ["models=nowhere"]])
def test_mistakes_are_told_in_a_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1
