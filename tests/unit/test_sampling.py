"""The sampler's table: of a trained model's logits from the whole grid, of dummy weights' from sampling points."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from profiler.sampling import Sampling


def trained_s(positions: int) -> float:
    """It jumps from 132 to 133 and rises on both sides."""
    return 2e-4 + 1e-6 * positions + 1e-4 * (positions > 132)


def row(kind: str, positions: int, sample_s: float, *, peaked: bool = True) -> dict[str, object]:
    seqs = {"prefill_seqs": 1, "decode_seqs": positions - 1, "verify_tokens": 0}
    return {"point": f"{kind} {positions}×32", **seqs, "logits_s": 4e-4, "sample_s": sample_s, "peaked": peaked}


def grid() -> list[dict[str, object]]:
    """No sampling point above 133, and the one at 64 drew logits that take long."""
    decodes = [row("decode", n, trained_s(n)) for n in (1, 8, 20, 32, 48, 64, 64, 96, 128, 256, 512, 768, 1024) for _ in range(3)]
    return decodes + [row("sampling", n, trained_s(n) * (1.3 if n == 64 else 1.0)) for n in (1, 64, 132, 133)]


def with_dummies() -> pd.DataFrame:
    return pd.DataFrame([*grid(), *(row("sampling", n, trained_s(n) + 5e-5, peaked=False) for n in (1, 64, 132, 133))])


@pytest.mark.parametrize("positions", [1, 14, 40, 96, 132, 133, 300, 1024])
def test_a_trained_models_sampler_is_that_of_all_steps(positions: int) -> None:
    found = Sampling.of(with_dummies())
    assert found is not None
    assert found.sample_ns(np.array([positions])) == pytest.approx(1e9 * trained_s(positions), rel=0.02)


def test_one_draw_of_logits_is_one_among_others() -> None:
    found = Sampling.of(with_dummies())
    assert found is not None
    assert 1.05 < found.sample_ns(np.array([64])).item() / (1e9 * trained_s(64)) < 1.25


@pytest.mark.parametrize(
    ("positions", "within"), [(1, 0.001), (64, 0.001), (132, 0.001), (133, 0.001), (32, 0.06), (100, 0.06), (1024, 0.01)]
)
def test_dummy_weights_cost_what_their_sampling_points_say_and_rise_as_a_trained_models(positions: int, within: float) -> None:
    found = Sampling.of(with_dummies())
    assert found is not None
    assert found.sample_ns(np.array([positions]), "dummy") == pytest.approx(1e9 * (trained_s(positions) + 5e-5), rel=within)


def test_without_sampling_points_there_is_one_sampler() -> None:
    found = Sampling.of(pd.DataFrame([step for step in grid() if str(step["point"]).startswith("decode")]))
    assert found is not None
    assert set(found.samplers) == {"trained"}


def test_a_profile_that_did_not_time_it_apart_has_none() -> None:
    assert Sampling.of(with_dummies().drop(columns="sample_s")) is None
