"""Cost terms, the artifact, and that one step and a stretch of steps cost the same to the nanosecond."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.artifacts.artifact import Artifact, Regime
from simulator.cost import CostModel
from simulator.engine import GraphMode
from simulator.errors import UserError
from simulator.features import StepFeatures, Term, design_matrix

FEATURES = StepFeatures(
    prefill_seqs=1, prefill_tokens=50, decode_seqs=9, decode_context_tokens=5000, decode_context_max_tokens=900, padded_tokens=64
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("one", 1),
        ("tokens", 59),
        ("padded_tokens", 64),
        ("padded_tokens[64:128]", 0),
        ("padded_tokens[:32]", 32),
        ("padded_tokens[60:]", 4),
        ("padded_tokens[16:48]", 32),
        ("decode_seqs*decode_context_max_tokens[800:]", 900),
        ("decode_seqs*decode_seqs", 81),
        ("padded_tokens[0:64:128]", 1),
        ("padded_tokens[48:80:128]", 0.5),
        ("padded_tokens[32:60:68]", 0.5),
        ("padded_tokens[63:64:65]", 1),
        ("padded_tokens[64:65:66]", 0),
        ("padded_tokens[:16:80]", 0.25),
        ("padded_tokens[:100:120]", 1),
        ("padded_tokens[60:62:]", 1),
        ("padded_tokens[60:68:]*decode_seqs", 4.5),
    ],
)
def test_a_term_has_its_value(text: str, value: int) -> None:
    assert Term(text).of(FEATURES) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ones",
        "padded_tokens[",
        "padded_tokens[64]",
        "padded_tokens[a:b]",
        "one*",
        "one + one",
        "tokens[-1:]",
        "tokens[128:64]",
        "tokens[64:64]",
        "tokens[64:32:128]",
        "tokens[32:64:64]",
        "tokens[32::64]",
        "tokens[:64:32]",
    ],
)
def test_a_bad_term_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="term"):
        Term(text)


knots = st.integers(0, 600)
segments = st.builds(lambda low, width: f"[{low}:{low + width}]", knots, st.integers(1, 600)) | knots.map(lambda low: f"[{low}:]")
factors = st.builds(
    str.__add__,
    st.sampled_from(["padded_tokens", "decode_seqs", "decode_context_tokens", "decode_context_max_tokens"]),
    segments | st.just("") | knots.filter(bool).map(lambda high: f"[:{high}]"),
)
terms = st.lists(factors, min_size=1, max_size=2).map("*".join)
shares = st.builds(
    lambda name, low, rise, fall: f"{name}[{low}:{low + rise}:{low + rise + fall}]",
    st.sampled_from(["padded_tokens", "decode_seqs", "decode_context_tokens", "decode_context_max_tokens"]),
    knots, st.integers(1, 600), st.integers(1, 600),
)  # fmt: skip


@given(
    # Two contexts multiplied reach 10¹³: the sum must fit into 64 bits.
    coefficients=st.dictionaries(terms | shares | st.just("one"), st.floats(0, 1e4), min_size=1, max_size=5),
    seqs=st.integers(1, 512),
    longest=st.integers(1, 9000),
    steps=st.integers(1, 20),
)
def test_a_stretch_of_steps_costs_what_its_steps_cost(coefficients: dict[str, float], seqs: int, longest: int, steps: int) -> None:
    model = with_coefficients(coefficients)
    grown = np.arange(steps)
    single = StepFeatures(decode_seqs=seqs, padded_tokens=seqs + 3, decode_context_tokens=seqs * longest, decode_context_max_tokens=longest)
    stretch = single._replace(decode_context_tokens=seqs * longest + seqs * grown, decode_context_max_tokens=longest + grown)
    one_by_one = [
        model.gpu_ns(single._replace(decode_context_tokens=seqs * (longest + k), decode_context_max_tokens=longest + k))
        for k in range(steps)
    ]
    together = model.gpu_ns(stretch)
    # Where no term moves, one number stands for all steps.
    assert np.broadcast_to(together, steps).tolist() == one_by_one


@given(text=terms | shares, values=st.lists(st.integers(0, 2000), min_size=1, max_size=10))
def test_a_term_is_the_same_for_numbers_and_for_columns(text: str, values: list[int]) -> None:
    column = np.array(values)
    columns = StepFeatures(decode_seqs=column, decode_context_tokens=column, decode_context_max_tokens=column, padded_tokens=column)
    single = [StepFeatures(decode_seqs=v, decode_context_tokens=v, decode_context_max_tokens=v, padded_tokens=v) for v in values]
    assert Term(text).of(columns).tolist() == [Term(text).of(features) for features in single]


@given(text=terms, value=st.integers(0, 2000), more=st.integers(0, 500))
def test_more_work_never_takes_less_time(text: str, value: int, more: int) -> None:
    def of(v: int) -> int:
        return int(Term(text).of(StepFeatures(decode_seqs=v, decode_context_tokens=v, decode_context_max_tokens=v, padded_tokens=v)))

    assert of(value) <= of(value + more)


@given(at=st.sets(st.integers(1, 600), min_size=3, max_size=8).map(sorted), value=st.integers(0, 700))
def test_shares_are_a_table_with_straight_lines(at: list[int], value: int) -> None:
    ends: list[int | str] = ["", *at, ""]
    table = [Term(f"padded_tokens[{low}:{peak}:{high}]") for low, peak, high in zip(ends, at, ends[2:], strict=False)]
    times = np.random.default_rng(0).uniform(1, 9, len(at))
    found = sum(time * term.of(StepFeatures(padded_tokens=value)) for time, term in zip(times, table, strict=True))
    assert found == pytest.approx(np.interp(value, at, times))


def test_a_design_matrix_has_a_column_a_term() -> None:
    features = StepFeatures(decode_seqs=np.array([1, 2, 3]), padded_tokens=np.array([1, 2, 4]), graph_mode=GraphMode.FULL)
    matrix = design_matrix(["one", "padded_tokens[2:]", "decode_seqs*padded_tokens"], features)
    assert matrix.tolist() == [[1, 0, 1], [1, 0, 4], [1, 2, 12]]


def with_coefficients(gpu_ns: dict[str, float]) -> CostModel:
    plain = CostModel.constant(1).artifact.model_dump(mode="json")
    regime = {"gpu_ns": gpu_ns}
    return CostModel(Artifact.model_validate({**plain, "step": {"none": regime, "piecewise": regime, "full": regime}}))


def test_an_artifact_survives_its_file(tmp_path: Path) -> None:
    artifact = CostModel.constant(10_000_000, per_seq_ns=123.456).artifact
    path = tmp_path / "model.json"
    path.write_text(artifact.model_dump_json())
    assert CostModel.load(path).artifact == artifact


def broken(**changed: object) -> str:
    return json.dumps({**CostModel.constant(1).artifact.model_dump(mode="json"), **changed})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not readable as JSON"),
        ('{"format_version": 1', "not readable as JSON"),
        ("[]", "file"),
        ("{}", "format_version"),
        (broken(format_version=2), "format_version"),
        (broken(tensor_parallel_size=0), "tensor_parallel_size"),
        (broken(surprise=1), "surprise"),
        (broken(step={"full": {"gpu_ns": {"one": 1.0}}}), "none, piecewise is missing"),
        (broken(step={mode: {"gpu_ns": {"one": -1.0}} for mode in ("none", "piecewise", "full")}), "must be 0 or more"),
        (broken(step={mode: {"gpu_ns": {"one": float("nan")}} for mode in ("none", "piecewise", "full")}), "must be 0 or more"),
        (broken(step={mode: {"gpu_ns": {"two": 1.0}} for mode in ("none", "piecewise", "full")}), "two"),
    ],
)
def test_a_corrupt_artifact_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "model.json"
    path.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        CostModel.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_artifact_that_is_no_text_or_not_there_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(b"\xff\xfe\x00garbage")
    with pytest.raises(UserError, match="not readable as JSON"):
        CostModel.load(path)
    with pytest.raises(UserError, match="no such file"):
        CostModel.load(tmp_path / "none.json")


def test_what_a_chunks_size_makes_of_tokens_before_it_is_remembered_and_stays_the_sum() -> None:
    coefficients = {
        "one": 5e6,
        "prefill_started_tokens*prefill_tokens[:128:256]": 20.0,
        "prefill_started_tokens*prefill_tokens[128:256:512]": 70.0,
    }
    regime = Regime(gpu_ns=coefficients)
    constant = CostModel.constant(1).artifact
    model = CostModel(constant.model_copy(update={"step": {"none": regime, "piecewise": regime, "full": regime}}))
    for _ in range(2):
        for chunk, start in ((128, 0), (64, 4096), (192, 4096), (192, 8192), (1000, 4096)):
            step = StepFeatures(prefill_seqs=1, prefill_tokens=chunk, prefill_context_tokens=start + chunk, padded_tokens=chunk)
            expected = design_matrix(coefficients, step) @ np.array(list(coefficients.values()))
            assert model.gpu_ns(step) == round(expected.item())
