"""What goes together in one service, and the lines that refuse the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from simulator.cluster import Group
from simulator.config import load
from simulator.errors import UserError
from simulator.simulate import simulate
from simulator.speculation import Acceptance
from simulator.step.steplog import ROW
from tests.support.services import random_speculative_scenario

EAGLE = ["model=r1-distill-qwen-7b", "gpu=h100-sxm", "opt=eagle3"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"acceptance": None}, "engine.speculative and acceptance: give both or neither"),
        ({"acceptance": Acceptance((0.5,) * 7)}, r"acceptance has rates for 7 drafts, num_speculative_tokens is \d"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        simulate(replace(random_speculative_scenario(1), **change))
    assert "\n" not in str(caught.value)


def test_a_pool_without_drafts_serves_beside_one_with_them() -> None:
    scenario = random_speculative_scenario(20_002)
    plain = Group("plain", scenario.engine.model_copy(update={"speculative": None}), scenario.cost, 1)
    result = simulate(replace(scenario, num_replicas=1, others=(plain,), router="round_robin", horizon_s=None))
    verified = [int(log.rows[:, ROW.index("verify_tokens")].sum()) for log in result.logs]
    assert verified[0] > 0
    assert verified[1] == 0
    assert (result.emitted_tokens == result.requests.output_tokens).all()


@pytest.mark.parametrize(
    "pool", [{}, {"cost_model": "models/h100-sxm/r1-distill-qwen-7b/bf16-kv_auto-tp1.json"}], ids=["as the main one", "plain"]
)
def test_a_pool_speculates_if_its_cost_model_was_measured_so(pool: dict[str, Any]) -> None:
    config = load(
        "conf/simulate.yaml", [*EAGLE, f"cluster.pools=[{', '.join(f'{{{k}: {v}}}' for k, v in pool.items()) or '{name: more}'}]"]
    )
    [group] = config.pools()
    assert (group.engine.speculative is not None) == (not pool)
    assert group.engine.enable_prefix_caching
    assert config.engine_config(config.load_cost()).speculative is not None
