"""The simulator's scheduler decides as vLLM's own did: against decisions that are kept, and, where vLLM is installed, against new ones.

Where vLLM's CPU build is installed: `python -m pytest -m vllm tests/conformance`. With `VLLM_0_26_TREE` set to the 0.26.0 wheel, unpacked
and without its `*.so`, also against 0.26.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.request import RequestTable
from tests.reference.plain_engine import PlainEngine, Step
from validation.conformance.cases import Case, Inbox, random_case
from validation.conformance.decisions import Decision, content, probed, shared_heads, simulated
from validation.conformance.golden import Golden
from validation.conformance.kinds import PREFIX_QUOTAS, QUOTAS
from validation.conformance.prefix_cases import random_prefix_case
from validation.conformance.run import difference, installed

ROOT = Path(__file__).parents[2]
VERSIONS = ("0.26", "0.32")
SAMPLES = [*VERSIONS, *(f"{version}-prefix" for version in VERSIONS)]
"""Without and with prefix caching."""


@cache
def golden(sample: str) -> Golden:
    return Golden.read(Path(__file__).parent / f"vllm-{sample}.json.xz")


CASES = [(sample, place) for sample in SAMPLES for place in range(len(golden(sample).cases))]


def quotas(sample: str) -> dict[str, int]:
    return PREFIX_QUOTAS if sample.endswith("-prefix") else QUOTAS


@pytest.mark.parametrize(("sample", "place"), CASES)
def test_the_simulator_decides_as_vllm_did(sample: str, place: int) -> None:
    kept = golden(sample)
    assert difference(simulated(kept.cases[place]), kept.decisions[place]) is None


def plain(case: Case) -> list[Decision]:
    """The decisions of the plain engine, its clock set aside."""
    arrivals = case.arrivals
    prompt_tokens, output_tokens, max_tokens, priority = zip(*(arrival[1:5] for arrival in arrivals), strict=True)
    table = RequestTable.build(
        range(len(arrivals)), prompt_tokens, output_tokens, max_tokens=max_tokens, priority=priority, content=content(case)
    )
    engine = PlainEngine(table, case.engine, CostModel.constant(1))
    inbox, heads, handled, decisions = Inbox(case), shared_heads(case), 0, []
    finished: set[int] = set()
    told: set[int] = set()
    while True:
        for row in inbox.due(handled, finished):
            engine.enqueue(engine.requests[row])
        while len(engine.queue) < case.engine.depth and (engine.running or engine.waiting):
            step = engine.schedule()
            engine.queue.append(step)
            decisions.append(
                as_decision(engine, step, finished - told)._replace(found=found(engine, case, heads, len(decisions), finished))
            )
            told = set(finished)
        if engine.queue:
            step = engine.queue.popleft()
            engine.update_from_output(step)
            handled += bool(step.rows)
            finished = {request.row for request in engine.requests if request.status == "finished"}
        elif (waited := inbox.next_handled(finished)) is not None:
            handled = waited
        else:
            return decisions


def found(engine: PlainEngine, case: Case, heads: list[int], step: int, finished: set[int]) -> int:
    row = probed(case, step, finished)
    if row is None:
        return 0
    request = engine.requests[row]
    blocks = engine.cache.get_computed_blocks(request.block_hashes, request.prompt_tokens)
    return min(len(blocks), heads[row])


def as_decision(engine: PlainEngine, step: Step, finished: set[int]) -> Decision:
    running = engine.running
    return Decision(
        finished=tuple(sorted(finished)),
        tokens=tuple((row.request.row, row.tokens) for row in step.rows),
        preempted=tuple(step.preempted),
        admitted=tuple(step.admitted),
        running=tuple(step.running),
        computed_tokens=tuple(request.num_computed_tokens for request in running),
        blocks=tuple(len(request.blocks) for request in running),
        free_blocks=len(engine.cache.free_block_queue),
        waiting=len(engine.waiting),
    )


@pytest.mark.parametrize(("sample", "place"), CASES)
def test_the_plain_engine_decides_as_vllm_did(sample: str, place: int) -> None:
    """So the oracle of `tests/equivalence` is one."""
    kept = golden(sample)
    assert difference(plain(kept.cases[place]), kept.decisions[place]) is None


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_sample_holds_every_kind_of_decision(sample: str) -> None:
    kept, version = golden(sample), sample.partition("-")[0]
    assert kept.vllm.startswith(f"{version}.")
    assert {name: kept.kinds[name] for name, quota in quotas(sample).items() if kept.kinds[name] < quota} == {}
    assert sum(map(len, kept.decisions)) > 5000
    assert {case.engine.vllm_version for case in kept.cases} == {version}
    assert {case.engine.enable_prefix_caching for case in kept.cases} == {sample.endswith("-prefix")}


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_sample_is_what_its_seeds_say(sample: str) -> None:
    """numpy may change how its generators turn bits into numbers: the cases are kept beside the decisions, and this would show it."""
    kept, draw = golden(sample), random_prefix_case if sample.endswith("-prefix") else random_case
    assert kept.cases == [draw(seed, sample.partition("-")[0]) for seed in kept.seeds]  # type: ignore[arg-type]


def other_rules(case: Case) -> Case:
    other = "0.26" if case.engine.vllm_version == "0.32" else "0.32"
    return case._replace(engine=EngineConfig(**case.engine.model_dump() | {"vllm_version": other}))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_sample_tells_one_version_from_the_other(version: str) -> None:
    kept = golden(version)
    differ = [
        case.engine
        for case, decisions in zip(kept.cases, kept.decisions, strict=True)
        if difference(simulated(other_rules(case)), decisions) is not None
    ]
    assert any(engine.long_prefill_token_threshold and engine.scheduling_policy == "fcfs" for engine in differ)
    # With no threshold, what is left is the victim in front that had no tokens in the step.
    assert any(engine.long_prefill_token_threshold == 0 for engine in differ)
    assert all(engine.long_prefill_token_threshold or engine.scheduling_policy == "priority" for engine in differ)


def conformance(*arguments: str, tree: str | None) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (tree, str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "validation.conformance", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)


def tree_0_26() -> str:
    tree = os.environ.get("VLLM_0_26_TREE")
    if not tree:
        pytest.skip("VLLM_0_26_TREE is not set")
    return tree


@pytest.fixture(params=["installed", "0.26"])
def vllm(request: pytest.FixtureRequest) -> tuple[str, str | None]:
    """(version, what to put first on the path)."""
    return ("0.26", tree_0_26()) if request.param == "0.26" else (installed(), None)


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("prefix_caching", [False, True])
def test_vllm_decides_as_it_did(vllm: tuple[str, str | None], prefix_caching: bool, tmp_path: Path) -> None:
    version, tree = vllm
    done = conformance(f"golden={tmp_path / 'new.json.xz'}", f"prefix_caching={prefix_caching}", tree=tree)
    assert done.returncode == 0, done.stderr
    new, kept = Golden.read(tmp_path / "new.json.xz"), golden(f"{version}-prefix" if prefix_caching else version)
    assert new.vllm.startswith(f"{version}.")
    assert new.seeds == kept.seeds
    assert [difference(n, k) for n, k in zip(new.decisions, kept.decisions, strict=True)] == [None] * len(kept.cases)
    assert new.kinds == kept.kinds


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("prefix_caching", [False, True])
def test_new_cases_show_no_difference(vllm: tuple[str, str | None], prefix_caching: bool) -> None:
    _, tree = vllm
    done = conformance("steps=100000", "seed=1000", f"prefix_caching={prefix_caching}", tree=tree)
    assert ", 0 cases differ\n" in done.stdout, done.stdout + done.stderr
