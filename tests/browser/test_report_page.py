"""The report in a real browser: without network, without errors, every figure drawn, on a laptop and on a phone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.plan import answer
from simulator.planning.slo import Slos
from simulator.planning.trial import Question
from simulator.reporting.page import page as html_of
from simulator.workload import validate

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

LENGTHS = {"kind": "custom", "prompt": {"kind": "constant", "value": 16}, "output": {"kind": "lognormal", "mu": 4.5, "sigma": 0.4}}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    question = Question(
        workload=validate({"kind": "open", "arrivals": {"kind": "poisson", "rate": 18}, "lengths": LENGTHS}),
        engine=EngineConfig(num_gpu_blocks=100_000),
        cost=CostModel.constant(5_000_000, per_seq_ns=1e6),
        slos=Slos.model_validate({"tpot_ms": {"p99": 15}, "ttft_s": {"p99": 1}}),
        num_seeds=2,
        measured_s=15.0,
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(html_of(answer(question, workers=1)), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [1280, 390])
def test_all_figures_are_drawn_and_nothing_is_wider_than_the_screen(page: Page, report: Path, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(report.as_uri())
    for index in range(8):
        page.locator(".plotly-graph-div").nth(index).locator(".scatterlayer .trace").first.wait_for(state="attached")
    assert page.locator(".plotly-graph-div").count() == 8
    assert page.locator(".js-plotly-plot .scatterlayer .trace").count() >= 16
    assert "You need" in page.locator("h1").inner_text()
    assert page.locator("tr.answer").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= width
