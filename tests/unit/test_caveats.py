"""What an answer warns of: an API server that was measured to fall behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.__main__ import main
from simulator.compose import CONF
from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.fleet.disaggregation import Disaggregation
from simulator.plan import Plan, answer
from simulator.planning.slo import Slos
from simulator.planning.trial import Question
from simulator.report import text
from simulator.reporting.caveats import LATE_TOKENS_PER_S, ON_TIME_TOKENS_PER_S, api_server, caveats
from simulator.workload import validate

TRACE = Path(__file__).parents[2] / "validation" / "traces" / "h200-r1-distill-qwen-7b-bf16-http-full"
WINDOW_S = 5.0


def test_the_limits_are_those_of_the_trace() -> None:
    """Tokens a second as they came to the client, and how long those who came then waited for their first."""
    requests = pd.read_csv(TRACE / "requests.csv.gz")
    first_s, last_s = requests["arrival_s"] + requests["ttft_s"], requests["arrival_s"] + requests["e2e_s"]
    on_time, late = [], []
    for begin_s in np.arange(0.0, requests["arrival_s"].max(), WINDOW_S):
        end_s = begin_s + WINDOW_S
        inside = (np.minimum(last_s, end_s) - np.maximum(first_s, begin_s)).clip(lower=0.0) / (last_s - first_s)
        tokens_per_s = (inside * requests["output_tokens"]).sum() / WINDOW_S
        ttft_s = requests.loc[requests["arrival_s"].between(begin_s, end_s), "ttft_s"].median()
        if tokens_per_s < ON_TIME_TOKENS_PER_S:
            on_time.append(ttft_s)
        elif tokens_per_s > LATE_TOKENS_PER_S:
            late.append(ttft_s)
    assert len(on_time) > 1
    assert len(late) > 1
    assert max(on_time) < 0.05
    assert min(late) > 1.0


def test_what_was_measured_on_time_is_no_cause_to_warn() -> None:
    assert api_server(ON_TIME_TOKENS_PER_S) == []
    (said,) = api_server(ON_TIME_TOKENS_PER_S + 1.0)
    assert "8,001 tokens/s" in said
    assert "--api-server-count" in said


@pytest.fixture(scope="module")
def fast() -> Plan:
    """Replicas that emit some 12,000 tokens a second."""
    lengths = {"kind": "custom", "prompt": {"kind": "constant", "value": 16}, "output": {"kind": "constant", "value": 200}}
    question = Question(
        workload=validate({"kind": "open", "arrivals": {"kind": "poisson", "rate": 120}, "lengths": lengths}),
        engine=EngineConfig(num_gpu_blocks=100_000),
        cost=CostModel.constant(1_000_000, per_seq_ns=7e4),
        slos=Slos.model_validate({"tpot_ms": {"p99": 100}}),
        num_seeds=2,
        measured_s=10.0,
    )
    return answer(question, workers=1)


def emitted(plan: Plan) -> float:
    return float(next(said for said in caveats(plan) if "a replica emits" in said).split()[3].replace(",", ""))


def test_a_plan_warns_of_what_one_replica_emits(fast: Plan) -> None:
    assert fast.num_replicas is not None
    assert fast.num_replicas > 1
    assert emitted(fast) * fast.num_replicas == pytest.approx(120 * 200, rel=0.1)
    assert "a replica emits" in text(fast)


def test_replicas_that_compute_prompts_emit_nothing(fast: Plan) -> None:
    split = Disaggregation(prefill_share=0.01, bandwidth_gb_per_s=1.0)
    assert fast.num_replicas is not None
    apart = replace(fast, question=replace(fast.question, disaggregation=split))
    assert emitted(apart) == pytest.approx(emitted(fast) * fast.num_replicas / (fast.num_replicas - 1), rel=1e-3)


@pytest.mark.parametrize(("replicas", "warned"), [(1, True), (2, False)])
def test_a_run_warns_too(replicas: int, warned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    traffic = ["workload.arrivals.rate=30", "workload.lengths.max_tokens=500", "run.num_requests=1500"]
    assert main([str(CONF / "simulate.yaml"), *traffic, f"cluster.num_replicas={replicas}", f"out={tmp_path}"]) == 0
    assert ("Beware: a replica emits" in capsys.readouterr().out) == warned
