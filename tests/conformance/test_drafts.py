"""Speculative decoding as vLLM 0.26's own scheduler does it, on the decisions that are kept and, where vLLM is installed, on new ones."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from tests.conformance.test_conformance import conformance, tree_0_26
from validation.conformance.cases import speculative_case
from validation.conformance.decisions import simulated
from validation.conformance.draft_kinds import DRAFT_QUOTAS
from validation.conformance.golden import Golden
from validation.conformance.run import difference

FILE = Path(__file__).parent / "vllm-0.26-drafts.json.xz"


@cache
def golden() -> Golden:
    return Golden.read(FILE)


@pytest.mark.parametrize("place", range(len(golden().cases)))
def test_the_simulator_verifies_drafts_as_vllm_did(place: int) -> None:
    assert difference(simulated(golden().cases[place]), golden().decisions[place]) is None


def test_the_sample_holds_every_kind_of_decision() -> None:
    kept = golden()
    assert kept.vllm.startswith("0.26.")
    assert {name: kept.kinds[name] for name, quota in DRAFT_QUOTAS.items() if kept.kinds[name] < quota} == {}
    assert {case.engine.speculative.method for case in kept.cases if case.engine.speculative} == {"ngram", "draft_model", "eagle", "eagle3"}


def test_the_sample_is_what_its_seeds_say() -> None:
    assert golden().cases == [speculative_case(seed) for seed in golden().seeds]


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_vllm_decides_as_it_did(tmp_path: Path) -> None:
    done = conformance("drafts=true", f"golden={tmp_path / 'new.json.xz'}", tree=tree_0_26())
    assert done.returncode == 0, done.stderr
    new, kept = Golden.read(tmp_path / "new.json.xz"), golden()
    assert new.seeds == kept.seeds
    assert [difference(n, k) for n, k in zip(new.decisions, kept.decisions, strict=True)] == [None] * len(kept.cases)
    assert new.kinds == kept.kinds


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_new_cases_show_no_difference() -> None:
    done = conformance("drafts=true", "steps=100000", "seed=1000", tree=tree_0_26())
    assert ", 0 cases differ\n" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout
