"""Speculative decoding as vLLM 0.26's own scheduler does it, on the decisions that are kept and, where vLLM is installed, on new ones."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from tests.conformance.test_conformance import conformance, tree_0_26
from validation.conformance.cases import speculative_case
from validation.conformance.decisions import simulated
from validation.conformance.draft_kinds import DRAFT_PREFIX_QUOTAS, DRAFT_QUOTAS
from validation.conformance.golden import Golden
from validation.conformance.prefix_cases import speculative_prefix_case
from validation.conformance.run import difference

QUOTAS = {False: DRAFT_QUOTAS, True: DRAFT_PREFIX_QUOTAS}
"""Without and with prefix caching, as all below."""
both = pytest.mark.parametrize("prefix_caching", QUOTAS)


@cache
def golden(prefix_caching: bool) -> Golden:
    return Golden.read(Path(__file__).parent / f"vllm-0.26-drafts{'-prefix' if prefix_caching else ''}.json.xz")


@pytest.mark.parametrize(("prefix_caching", "place"), [(some, place) for some in QUOTAS for place in range(len(golden(some).cases))])
def test_the_simulator_verifies_drafts_as_vllm_did(prefix_caching: bool, place: int) -> None:
    kept = golden(prefix_caching)
    assert difference(simulated(kept.cases[place]), kept.decisions[place]) is None


@both
def test_the_sample_holds_every_kind_of_decision(prefix_caching: bool) -> None:
    kept = golden(prefix_caching)
    assert kept.vllm.startswith("0.26.")
    assert {name: kept.kinds[name] for name, quota in QUOTAS[prefix_caching].items() if kept.kinds[name] < quota} == {}
    assert {case.engine.enable_prefix_caching for case in kept.cases} == {prefix_caching}
    assert {case.engine.speculative.method for case in kept.cases if case.engine.speculative} == {"ngram", "draft_model", "eagle", "eagle3"}


@both
def test_the_sample_is_what_its_seeds_say(prefix_caching: bool) -> None:
    kept, make = golden(prefix_caching), speculative_prefix_case if prefix_caching else speculative_case
    assert kept.cases == [make(seed) for seed in kept.seeds]


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(600)
@both
def test_vllm_decides_as_it_did(prefix_caching: bool, tmp_path: Path) -> None:
    done = conformance("drafts=true", f"prefix_caching={prefix_caching}", f"golden={tmp_path / 'new.json.xz'}", tree=tree_0_26())
    assert done.returncode == 0, done.stderr
    new, kept = Golden.read(tmp_path / "new.json.xz"), golden(prefix_caching)
    assert new.seeds == kept.seeds
    assert [difference(n, k) for n, k in zip(new.decisions, kept.decisions, strict=True)] == [None] * len(kept.cases)
    assert new.kinds == kept.kinds


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(600)
@both
def test_new_cases_show_no_difference(prefix_caching: bool) -> None:
    done = conformance("drafts=true", f"prefix_caching={prefix_caching}", "steps=100000", "seed=1000", tree=tree_0_26())
    assert ", 0 cases differ\n" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout
