"""Where speculation stops to pay, against arithmetic; and the way there from a configuration."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from simulator.__main__ import main
from simulator.artifacts.models import MODELS
from simulator.compose import CONF
from simulator.config import load
from simulator.cost import CostModel
from simulator.drafts.crossover import Crossover, crossover, crossover_chart, crossover_of, verdict
from simulator.engine import EngineConfig
from simulator.errors import UserError
from simulator.plan import plan
from simulator.planning.sizing import Demand
from simulator.report import facts
from simulator.request import RequestTable
from simulator.simulate import simulate
from tests.support.cases import cost_model

WEIGHTS_NS, TOKEN_NS, DRAFT_NS = 10_000_000, 20_000, 3_000_000
REQUESTS = RequestTable.build(np.zeros(50, np.int64), np.full(50, 100), np.full(50, 400))


def demand(cost: CostModel, tokens_per_step: float, drafts: int, **options: object) -> Demand:
    speculative = {"method": "draft_model", "num_speculative_tokens": drafts} if drafts else None
    # Without graphs nothing is padded, so that time is a straight line.
    engine = EngineConfig(num_gpu_blocks=200_000, enforce_eager=True, async_scheduling=False, speculative=speculative, **options)  # type: ignore[arg-type]
    return Demand(REQUESTS, 1.0, engine, cost, tokens_per_step)


def by_arithmetic(tokens_per_step: float, drafts: int) -> float:
    """(W + D + T (1 + K) n) / τ = W + T n."""
    spared = WEIGHTS_NS * (tokens_per_step - 1) - DRAFT_NS
    return spared / (TOKEN_NS * (1 + drafts - tokens_per_step))


PLAIN = cost_model({"one": WEIGHTS_NS, "tokens": TOKEN_NS})
DRAFTED = cost_model({"one": WEIGHTS_NS + DRAFT_NS, "tokens": TOKEN_NS})


@pytest.mark.parametrize(("tokens_per_step", "drafts"), [(2.07, 3), (2.46, 3), (1.61, 2)])
def test_speculation_hurts_from_where_arithmetic_says(tokens_per_step: float, drafts: int) -> None:
    found = crossover(demand(PLAIN, 1.0, 0), demand(DRAFTED, tokens_per_step, drafts), 1000)
    expected = by_arithmetic(tokens_per_step, drafts)
    assert found.hurts_from == int(np.floor(expected)) + 1
    assert found.speedup[0] == pytest.approx((WEIGHTS_NS + TOKEN_NS) * tokens_per_step / (WEIGHTS_NS + DRAFT_NS + TOKEN_NS * (1 + drafts)))
    assert f"up to a batch of {int(expected)} sequences" in verdict(found)
    drawn = crossover_chart(found).figure
    assert [len(trace.x) for trace in drawn.data] == [1000, 1000]


def test_it_may_always_help_or_never() -> None:
    never = crossover(demand(PLAIN, 1.0, 0), demand(DRAFTED, 1.1, 3), 100)
    assert never.hurts_from == 1
    assert "at no batch size up to 100" in verdict(never)
    always = crossover(demand(PLAIN, 1.0, 0), demand(DRAFTED, 2.5, 3), 100)
    assert always.hurts_from is None
    assert "at every batch size up to 100" in verdict(always)


def test_a_step_that_is_padded_makes_no_crossing_by_itself() -> None:
    found = Crossover(np.array([2.0, 1.0, 2.0, 1.0]), np.array([1.0, 1.5, 1.5, 1.5]), 2.0, 2)
    assert found.hurts_from == 4
    assert "beyond 2 sequences this is extrapolated" in verdict(found)


# -- from a configuration -----------------------------------------------------------------------------------------------


@pytest.fixture
def speculative_artifact(tmp_path: Path) -> Path:
    """A shipped cost model as if it had been measured with drafts: each costs a tenth of a millisecond, drafting 2 ms a step."""
    artifact = json.loads((MODELS / "h100-sxm/r1-distill-qwen-7b/bf16-kv_auto-tp1.json").read_text())
    artifact["speculation"] = "eagle3-k3"
    for regime in artifact["step"].values():
        regime["gpu_ns"] = regime["gpu_ns"] | {"verify_tokens": 1e5, "one": regime["gpu_ns"].get("one", 0.0) + 2e6}
    path = tmp_path / "eagle3.json"
    path.write_text(json.dumps(artifact))
    return path


def test_the_command_compares_with_the_same_service_without_drafts(
    speculative_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main([str(CONF / "crossover.yaml"), f"cost_model={speculative_artifact}", f"out={tmp_path}", "crossover.max_batch=200"])
    out = capsys.readouterr().out
    assert status == 0
    assert "Speculation helps up to a batch of" in out
    assert "2.87 tokens a step" in out
    (folder,) = tmp_path.glob("crossover-*")
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "crossover.html", "crossover.parquet"}


def test_a_service_with_drafts_is_simulated_from_its_own_cost_model(speculative_artifact: Path) -> None:
    given = ["opt=eagle3", f"cost_model={speculative_artifact}", "run.duration_s=5", "workload=gsm8k", "cluster.num_replicas=1"]
    config = load(CONF / "simulate.yaml", given)
    scenario = config.scenario()
    assert scenario.engine.speculative is not None
    assert scenario.engine.speculative.name == "eagle3-k3"
    assert scenario.engine.async_scheduling
    result = simulate(scenario)
    plain = simulate(load(CONF / "simulate.yaml", ["run.duration_s=5", "workload=gsm8k", "cluster.num_replicas=1"]).scenario())
    assert (result.emitted_tokens == plain.emitted_tokens).all()
    assert result.logs[0].num_steps < plain.logs[0].num_steps
    assert result.logs[0].rows[:, 10].max() > 0
    own = load(CONF / "simulate.yaml", [*given, "acceptance.rates=[0,0,0]"]).scenario()
    assert own.acceptance is not None
    assert own.acceptance.mean_emitted == 1.0


def test_a_plan_counts_on_the_drafts(speculative_artifact: Path) -> None:
    given = [
        "model=r1-distill-qwen-7b",
        "opt=eagle3",
        f"cost_model={speculative_artifact}",
        "workload=gsm8k",
        "workload.arrivals.rate=3",
        "workload.lengths.max_tokens=300",
        "plan.hours=0.01",
    ]
    given += ["plan.num_seeds=2", "slo=null", "slo.tpot_ms.p99=8", "plan.workers=1"]
    found = plan(load(CONF / "capacity_planning.yaml", given))
    assert found.num_replicas is not None
    assert dict(facts(found))["drafts"].startswith("eagle3-k3: 2.87 tokens a step")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["opt=draft_model", "opt.speculative.num_speculative_tokens=5"], "no cost model for .*-draft_model-k5; measured of h100-sxm"),
        (["opt=eagle3", "opt.speculative.num_speculative_tokens=5"], "-eagle3-k5; measured"),
        (["opt=ngram", "cost_model=ARTIFACT"], "measured with eagle3-k3, opt has ngram-k3"),
        (["cost_model=ARTIFACT"], "measured with eagle3-k3, opt has none"),
        (
            ["opt=eagle3", "cost_model=ARTIFACT", "acceptance=eagle3/paper-tree"],
            "tree of drafts.*valid for eagle3: eagle3/math",
        ),
        (["opt=eagle3", "cost_model=ARTIFACT", "acceptance.rates=[0.5]"], "has 1 entries"),
        (["opt=eagle3", "opt.speculative.method=medusa"], "speculative.method"),
        (["opt=eagle3", "acceptance.rates=[0.5]", "acceptance.length=2"], "one of name, rates and length"),
    ],
)
def test_what_was_not_measured_is_refused_in_one_line(overrides: list[str], words: str, speculative_artifact: Path) -> None:
    given = [text.replace("ARTIFACT", str(speculative_artifact)) for text in overrides]
    with pytest.raises(UserError, match=words) as error:
        load(CONF / "simulate.yaml", [*given, "run.duration_s=1"]).scenario()
    assert "\n" not in str(error.value)


def test_a_crossover_needs_drafts() -> None:
    with pytest.raises(UserError, match="give opt=eagle3"):
        crossover_of(load(CONF / "crossover.yaml", ["opt=none"]))
