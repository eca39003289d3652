"""What a plan's text and page say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.plan import Plan, answer
from simulator.planning.slo import Slos
from simulator.planning.trial import Question
from simulator.report import WIDTH, summary, text
from simulator.reporting.page import page
from simulator.reporting.wording import duration, plus_minus, slo_label
from simulator.workload import validate

LENGTHS = {"kind": "custom", "prompt": {"kind": "constant", "value": 16}, "output": {"kind": "lognormal", "mu": 4.5, "sigma": 0.4}}


def question(limit_ms: float, max_gpus: int = 64) -> Question:
    return Question(
        workload=validate({"kind": "open", "arrivals": {"kind": "poisson", "rate": 18}, "lengths": LENGTHS}),
        engine=EngineConfig(num_gpu_blocks=100_000),
        cost=CostModel.constant(5_000_000, per_seq_ns=1e6),
        slos=Slos.model_validate({"tpot_ms": {"p99": limit_ms}, "e2e_s": {"p50": 60}, "min_goodput_share": 0.5}),
        num_seeds=2,
        max_gpus=max_gpus,
        measured_s=15.0,
    )


@pytest.fixture(scope="module")
def feasible() -> Plan:
    return answer(question(15), workers=1)


def test_the_answer_comes_first_and_fits_on_a_screen(feasible: Plan) -> None:
    lines = text(feasible).splitlines()
    assert lines[0].startswith(f"You need {feasible.gpus} GPUs: {feasible.num_replicas} replicas, one none each,")
    assert len(lines) <= 25
    assert max(map(len, lines[: lines.index("", 2)])) <= WIDTH


def test_a_screen_holds_any_traffic_and_all_caveats(feasible: Plan) -> None:
    sizes = dict.fromkeys(range(1, 8), feasible.candidates[feasible.num_replicas or 1])
    caveats = tuple(f"the rate of client {index} swings over 3 h, and a run measures 2 min: give plan.hours" for index in range(6))
    crowded = replace(
        feasible, traffic="ten clients, each with lengths of its own, " * 20, caveats=caveats, candidates=sizes, settled=False
    )
    said = text(crowded).splitlines()
    assert len(said) <= 23
    assert all(f"\n{label}" in text(crowded) for label in ("binding SLO", "how sure", "steady state", "traffic", "beware"))
    assert any(line.endswith("…") for line in said)
    assert "client 5 swings" in page(crowded)


def test_the_text_says_what_binds_what_one_fewer_does_and_how_it_was_measured(feasible: Plan) -> None:
    said = text(feasible)
    assert feasible.num_replicas is not None
    assert feasible.chosen is not None
    assert "binding SLO   TPOT p99 is " in said
    assert f"{feasible.chosen.binding.headroom:.1%} to spare" in said
    assert f"with {feasible.num_replicas - 1} GPUs TPOT p99 is " in said
    assert "95% interval" in said
    assert "warm-up" in said
    assert "no queue grows" in said
    assert f"{feasible.simulated_s / 3600:.2f} hours of service" in said
    assert [line.split()[0] for line in said.splitlines() if "←" in line] == [str(feasible.gpus)]


def test_a_size_that_fails_and_still_fills_shows_what_is_least(feasible: Plan) -> None:
    assert feasible.num_replicas is not None
    rising = replace(feasible, rising=(feasible.num_replicas - 1,))
    said, settled = text(rising), text(feasible)
    assert f"with {feasible.num_replicas - 1} GPUs TPOT p99 is at least " in said
    assert [line.split()[0] for line in said.splitlines() if "≥ " in line and "suffices" not in line] == [str(feasible.num_replicas - 1)]
    assert "at least" not in settled
    # Goodput falls where latencies rise.
    assert all(row.count("≤ ") == 1 for row in said.splitlines() if "≥ " in row and "suffices" not in row)
    assert summary(rising)["rising"] == [feasible.num_replicas - 1]


def test_infeasible_is_said_with_its_reason() -> None:
    said = text(answer(question(5), workers=1))
    assert said.startswith("No number of GPUs up to 64 will do")
    assert "TPOT p99 is 6 ms (limit 5 ms)" in " ".join(said.split())
    assert "\nGPUs" not in said


def test_the_summary_has_a_row_a_size(feasible: Plan) -> None:
    found = summary(feasible)
    assert found["gpus"] == feasible.gpus
    assert [row["gpus"] for row in found["candidates"]] == list(feasible.candidates)
    assert {slo["name"] for slo in found["candidates"][0]["slo"]} == {"tpot_ms.p99", "e2e_s.p50", "min_goodput_share"}


def test_the_page_needs_nothing_else(feasible: Plan) -> None:
    html = page(feasible)
    ours = html.replace(html[html.index("<script>") : html.index("</script>")], "")
    assert "src=" not in ours
    assert "https://" not in ours.replace("https://plot.ly", "")
    assert html.count('class="plotly-graph-div"') == 8


def test_the_page_escapes_names(feasible: Plan) -> None:
    odd = replace(feasible, traffic="<script>alert(1)</script>")
    assert "<script>alert(1)" not in page(odd)


def test_a_page_without_figures_is_small() -> None:
    html = page(answer(question(5), workers=1))
    assert "No number of GPUs" in html
    assert len(html) < 20_000


def test_numbers_in_words() -> None:
    assert [duration(x) for x in (0.0119, 35.12, 300.0, 9000.0)] == ["11.9 ms", "35.1 s", "5 min", "2.5 h"]
    assert duration(float("inf")) == "> run"
    assert plus_minus("tpot_ms.p99", 0.0140, 0.00043) == "14.00 ± 0.43 ms"
    assert plus_minus("min_goodput_share", 0.951, 0.012) == "95.1 ± 1.2%"
    assert slo_label("ttfvt_s.p90") == "TTFVT p90"
