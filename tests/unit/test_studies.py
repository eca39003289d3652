"""`conf/study/`: what was published is typed off right, and every study runs."""

from __future__ import annotations

from math import ceil, floor
from pathlib import Path

import pandas as pd
import pytest

from simulator.comparing.compare import compare
from simulator.comparing.report import text
from simulator.comparing.verdict import Claim
from simulator.compose import CONF
from simulator.config import load
from validation.study.tables import TABLES

STUDIES = sorted((CONF / "study").glob("*.yaml"))
LONG = ["MATH500", "AIME24", "GPQA"]


def claims(name: str, metric: str) -> dict[str, Claim]:
    options = load(CONF / "study" / f"{name}.yaml").compare
    assert options is not None
    return {claim.variant: claim for claim in options.claims if claim.metric == metric}


def ratios(model: str, changed: str, cfg: str) -> pd.Series[float]:
    """Running time over that of the plain model at batches of 16, of the data sets with long answers."""
    cells = pd.read_csv(TABLES)
    keys = ["dataset", "budget"]
    base = cells[(cells["model"] == model) & (cells["cfg"] == "16")].set_index(keys)["time_s"]
    return (cells[(cells["model"] == changed) & (cells["cfg"] == cfg)].set_index(keys)["time_s"] / base).loc[LONG]


def outward(low: float, high: float) -> tuple[float, float]:
    """To two decimals, and never narrower than what was published."""
    return floor(100 * low + 0.5) / 100, ceil(100 * high - 0.5) / 100


@pytest.mark.parametrize(
    ("study", "variant", "model", "changed", "cfg"),
    [
        ("weight_quantization", "gptq", "RLLM-14B", "RLLM-14B-WQ", "GPTQ"),
        ("weight_quantization", "awq", "RLLM-14B", "RLLM-14B-WQ", "AWQ"),
        ("weight_quantization", "fp8", "RLLM-14B", "RLLM-14B-WQ", "FP8"),
        ("weight_quantization_7b", "gptq", "RLLM-7B", "RLLM-7B-WQ", "GPTQ"),
        ("weight_quantization_7b", "awq", "RLLM-7B", "RLLM-7B-WQ", "AWQ"),
        ("weight_quantization_7b", "fp8", "RLLM-7B", "RLLM-7B-WQ", "FP8"),
        ("kv_fp8", "kv_fp8", "RLLM-14B", "RLLM-14B-KVQ", "E4M3"),
    ],
)
def test_published_ranges_are_those_of_the_tables(study: str, variant: str, model: str, changed: str, cfg: str) -> None:
    claim, found = claims(study, "duration_s")[variant], ratios(model, changed, cfg)
    assert len(found) == 6
    assert (claim.low, claim.high) == outward(found.min(), found.max())


def test_the_published_range_of_prefix_caching_is_that_of_the_tables() -> None:
    without, claim = ratios("RLLM-32B", "RLLM-32B-noPC", "noPC"), claims("prefix_caching", "duration_s")["prefix caching"]
    assert (claim.low, claim.high) == (0.95, outward(0, 1 / without.min())[1])
    assert floor(100 / without.max()) / 100 == claim.low


def test_published_running_times_are_those_of_table_2() -> None:
    cells = pd.read_csv(TABLES)
    times = cells[(cells["model"] == "RLLM-7B") & (cells["budget"] == 8192)].pivot_table(index="cfg", columns="dataset", values="time_s")
    assert list(times.index) == ["16", "64", "8"]
    found = claims("running_time", "duration_s")
    for variant, dataset in {"math500": "MATH500", "gpqa": "GPQA", "aime24, 30 questions": "AIME24"}.items():
        ratio, claim = times[dataset] / times["GSM8K"], found[variant]
        assert claim.low == pytest.approx(ratio.min(), abs=0.11)
        assert claim.high == pytest.approx(ratio.max(), abs=0.11)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_runs_and_judges(path: Path) -> None:
    found = compare(path, ["compare.num_seeds=2", "compare.workers=1", "++run.num_requests=32"])
    assert len(found.judged) == len(found.options.claims) > 0
    assert f"python -m simulator conf/study/{path.name}" in path.read_text(encoding="utf-8")
    for judged in found.judged:
        assert judged.verdict.word == "agrees" or judged.verdict.reason or judged.verdict.word == "disagrees"
        assert f"{judged.verdict.word}: {judged.claim.variant}, " in text(found)


def test_every_finding_has_a_study() -> None:
    told = "\n".join(path.read_text(encoding="utf-8") for path in STUDIES)
    missing = [finding for finding in range(1, 10) if f"# Finding {finding} of arXiv 2510.18672" not in told]
    assert missing == []


def test_adaptive_lengths_show_as_running_time() -> None:
    """Finding 3, as an order that no calibration could undo."""
    found = compare(CONF / "study" / "running_time.yaml", ["compare.num_seeds=3", "compare.workers=1"])
    means = [found.row(name, "e2e_s.mean").level.value for name in ("gsm8k", "math500", "gpqa")]
    assert means == sorted(means)


def test_a_smaller_pool_is_filled_in_proportion() -> None:
    """Finding 1's shares are of a pool: half of it is filled twice as much, where nobody waits."""
    path = CONF / "study" / "kv_memory.yaml"
    found = [
        compare(path, ["compare.num_seeds=2", "compare.workers=1", "run.num_requests=32", f"engine.num_gpu_blocks_override={blocks}"])
        for blocks in (40_001, 20_001)
    ]
    large, small = (comparison.row("r1 math500", "kv_usage.max").level.value for comparison in found)
    assert small == pytest.approx(2 * large, rel=1e-6)
