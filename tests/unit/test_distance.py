"""How far two profiles lie apart: nothing from itself, and from a slower one by as much as it is slower."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest

from profiler.distance import distance, main
from profiler.raw import Raw
from simulator.artifacts.models import MODELS
from simulator.errors import UserError

OWNER = MODELS / "h100-sxm" / "r1-distill-qwen-7b" / "bf16-kv_auto-tp1.json"


def slower(raw: Raw, forward: float) -> Raw:
    steps = pd.read_csv(StringIO(raw.steps_csv))
    added = steps["forward_s"] * (forward - 1)
    steps["forward_s"] += added
    steps["gpu_s"] += added
    return replace(raw, steps_csv=steps.to_csv(index=False))


def test_a_profile_is_nowhere_from_itself() -> None:
    raw = Raw.read(OWNER)
    table = distance(raw, raw)
    assert {name.split(",")[0] for name in table.index} == {"decode", "prefill", "mixed"}
    assert (table[["median", "p90", "mean"]] == 0).all().all()
    assert (table["batches"] > 20).all()


def test_a_slower_forward_pass_is_seen_where_it_is() -> None:
    raw = Raw.read(OWNER)
    table = distance(raw, slower(raw, 1.02))
    forward = table.index.str.endswith("forward pass")
    assert table.loc[forward, "median"].tolist() == pytest.approx([0.02] * 3, rel=1e-6)
    assert table.loc[~forward, "p90"].max() < 1e-9


def test_what_weights_do_to_a_forward_pass_is_what_another_machine_does(capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped profile with weights of a real model's scale, and another one with dummy weights."""
    first, others = Raw.read(OWNER), [Raw.read(OWNER.with_name(f"bf16-kv_auto-tp1-{name}.json")) for name in ("realistic", "another")]
    for other in others:
        table = distance(first, other)
        assert table.loc[table.index.str.endswith("forward pass"), "median"].abs().max() < 0.012
    assert main([f"a={OWNER}", f"b={OWNER}"]) == 0
    assert "forward pass" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["a=x"], ["a=x", "b=y", "c=z"], ["a=nowhere", "b=nowhere"]])
def test_mistakes_are_told_in_a_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_profiles_of_different_things_are_said_to_be(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    raw = Raw.read(OWNER)
    steps = pd.read_csv(StringIO(raw.steps_csv))
    steps["padded_tokens"] += 10**6
    replace(raw, steps_csv=steps.to_csv(index=False)).write(tmp_path / "other.json")
    assert main([f"a={OWNER}", f"b={tmp_path / 'other.json'}"]) == 2
    assert "no batch in common" in capsys.readouterr().err


def test_batches_of_one_size_and_longest_context_are_not_the_same_if_the_others_are_shorter() -> None:
    """Even batches, and those of which all but one sequence are short, take different times."""
    raw = Raw.read(OWNER)
    steps = pd.read_csv(StringIO(raw.steps_csv))
    several = steps[steps["point"].str.startswith("decode ") & (steps["decode_seqs"] > 1)]
    spread = several[several["point"].str.endswith(" spread")]
    even = several[several["point"].isin(spread["point"].str.removesuffix(" spread").unique())]
    assert even["point"].nunique() > 3
    with pytest.raises(UserError, match="no batch in common"):
        distance(replace(raw, steps_csv=even.to_csv(index=False)), replace(raw, steps_csv=spread.to_csv(index=False)))
