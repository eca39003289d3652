"""Launches that take now longer, now shorter: the same for every stride, and drawn from the step, never from the order of drawing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator.cost import CostModel
from simulator.engine import GraphMode
from simulator.features import StepFeatures
from simulator.simulate import Scenario, simulate
from simulator.step.chance import chance
from simulator.step.clock import Launch
from tests.support.cases import cost_model
from tests.support.digest import digest
from tests.support.services import random_scenario, random_speculative_scenario, with_stride

SPREAD = [0.5, 0.75, 1.0, 1.25, 1.5]
PROMPT = StepFeatures(prefill_seqs=1, prefill_tokens=100, padded_tokens=104, graph_mode=GraphMode.PIECEWISE)
DECODE = StepFeatures(decode_seqs=100, padded_tokens=104, graph_mode=GraphMode.FULL)


def spread(cost: CostModel) -> CostModel:
    step = {mode: regime.model_copy(update={"launch_spread": SPREAD}) for mode, regime in cost.artifact.step.items()}
    return CostModel(cost.artifact.model_copy(update={"step": step}))


def lucky(scenario: Scenario) -> Scenario:
    return replace(scenario, cost=spread(scenario.cost))


@pytest.mark.parametrize("seed", range(60))
def test_stride_changes_nothing(seed: int) -> None:
    scenario = lucky((random_scenario, random_speculative_scenario)[seed % 2](seed))
    assert digest(simulate(with_stride(scenario, 1))) == digest(simulate(with_stride(scenario, None)))


def test_some_of_them_are_other_than_without_luck_and_with_another_seed() -> None:
    changed = reseeded = 0
    for seed in range(0, 60, 2):
        scenario = random_scenario(seed)
        changed += digest(simulate(lucky(scenario))) != digest(simulate(scenario))
        fixed = replace(lucky(scenario), router="round_robin")
        reseeded += digest(simulate(fixed)) != digest(simulate(replace(fixed, seed=fixed.seed + 1)))
    assert changed > 10
    assert reseeded > 10


def test_only_prompts_have_luck() -> None:
    model = spread(cost_model({"one": 1_000}, {"one": 400}, {"one": 100}))
    assert model.launch(PROMPT) == model.launch(PROMPT, 0.5) == Launch(100, 400)
    assert model.launch(PROMPT, 0.0) == Launch(50, 200)
    assert model.launch(PROMPT, 0.875) == Launch(138, 550)
    assert model.launch(DECODE, 0.875) == Launch(100, 400)


def test_chance_is_even_and_a_step_s_own() -> None:
    drawn = np.array([[chance(seed, replica, step) for step in range(2_000)] for seed, replica in ((0, 0), (0, 1), (1, 0))])
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert drawn.mean(axis=1) == pytest.approx([0.5] * 3, abs=0.03)
    assert np.abs(np.corrcoef(drawn) - np.eye(3)).max() < 0.08
    assert np.abs([np.corrcoef(row[1:], row[:-1])[0, 1] for row in drawn]).max() < 0.08
