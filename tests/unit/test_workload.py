"""Specs, their refusal, and the workloads that they generate."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from simulator.errors import UserError
from simulator.workload import Barrier, ClosedLoop, OpenLoop, Workload, generate, mean_tokens, validate

CONFIGS = sorted((Path(__file__).parents[2] / "conf" / "workload").glob("*.yaml"))
FIXED = {"kind": "custom", "prompt": {"kind": "constant", "value": 100}, "output": {"kind": "constant", "value": 50}}
MATH = {"kind": "catalogue", "name": "r1-distill-qwen-7b/math500", "max_tokens": 8192}


def open_spec(lengths: dict[str, Any] = MATH, rate: float = 20.0, **arrivals: Any) -> Any:
    return validate({"kind": "open", "arrivals": {"kind": "gamma", "rate": rate, "cv": 1.26, **arrivals}, "lengths": lengths})


def columns(workload: Workload) -> dict[str, Any]:
    return {name: value for name, value in vars(workload.requests).items() if name not in ("client_names", "content")}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_generates(path: Path) -> None:
    workload = generate(validate(yaml.safe_load(path.read_text())), seed=0, max_model_len=32_768, num_requests=500)
    assert len(workload.requests) + workload.rejected == 500
    assert "\n" not in workload.description


def test_the_default_question() -> None:
    path = next(path for path in CONFIGS if path.stem == "math500")
    spec = validate(yaml.safe_load(path.read_text()))
    workload = generate(spec, seed=0, max_model_len=32_768, duration_s=3600)
    assert len(workload.requests) == pytest.approx(72_000, abs=5 * 1.26 * np.sqrt(72_000))
    assert workload.requests.output_tokens.max() == 8192
    assert workload.description.startswith(
        "20 requests/s, reasoning arrivals (CV 1.26); r1-distill-qwen-7b/math500 lengths (tier B, markyx316) capped at 8,192; "
    )
    assert workload.mean_output_tokens == pytest.approx(mean_tokens(spec.lengths).output, rel=0.02)  # type: ignore[union-attr]
    assert workload.loop == OpenLoop()


def test_same_seed_same_bytes_and_another_seed_others() -> None:
    first, again, other = (columns(generate(open_spec(), seed, max_model_len=32_768, num_requests=2000)) for seed in (1, 1, 2))
    for name, column in first.items():
        assert column.tobytes() == again[name].tobytes()
    for name in ("arrival_ns", "prompt_tokens", "output_tokens", "visible_token"):
        assert first[name].tobytes() != other[name].tobytes()


def test_another_rate_burstiness_or_duration_changes_no_length() -> None:
    base = columns(generate(open_spec(), 1, max_model_len=32_768, num_requests=2000))
    variants = [
        generate(open_spec(rate=5.0), 1, max_model_len=32_768, num_requests=2000),
        generate(open_spec(cv=2.0), 1, max_model_len=32_768, num_requests=2000),
        generate(open_spec(), 1, max_model_len=32_768, duration_s=300),
    ]
    for workload in variants:
        shared = min(2000, len(workload.requests))
        for name in ("prompt_tokens", "output_tokens", "visible_token", "request_id"):
            np.testing.assert_array_equal(columns(workload)[name][:shared], base[name][:shared])


def test_another_cap_or_budget_changes_no_arrival_and_no_prompt() -> None:
    base = columns(generate(open_spec(), 1, max_model_len=32_768, num_requests=2000))
    other = columns(
        generate(open_spec({**MATH, "max_tokens": 500, "think_budget_tokens": 100}), 1, max_model_len=32_768, num_requests=2000)
    )
    for name in ("arrival_ns", "prompt_tokens"):
        np.testing.assert_array_equal(base[name], other[name])
    assert not np.array_equal(base["output_tokens"], other["output_tokens"])


def test_the_context_ends_outputs_and_rejects_prompts_that_keep_their_ids() -> None:
    prompts = {"kind": "empirical", "values": [90, 99, 100, 150]}
    spec = open_spec({**FIXED, "prompt": prompts, "max_tokens": 60})
    workload = generate(spec, 3, max_model_len=100, num_requests=4000)
    table = workload.requests
    assert workload.rejected == pytest.approx(2000, abs=5 * np.sqrt(1000))
    assert "rejected" in workload.description
    assert sorted(set(zip(table.prompt_tokens.tolist(), table.output_tokens.tolist(), strict=True))) == [(90, 10), (99, 1)]
    assert table.truncated.all()
    unbounded = generate(spec, 3, max_model_len=10_000, num_requests=4000).requests
    np.testing.assert_array_equal(unbounded.request_id[unbounded.prompt_tokens < 100], table.request_id)
    assert not unbounded.truncated.any()


def test_loops_that_wait_have_no_arrivals_of_their_own() -> None:
    closed = generate(
        validate({"kind": "closed", "num_clients": 4, "think_s": 2.5, "lengths": FIXED}), 0, max_model_len=1000, num_requests=12
    )
    barrier = generate(validate({"kind": "barrier", "batch_size": 3, "lengths": FIXED}), 0, max_model_len=1000, num_requests=12)
    assert (closed.loop, barrier.loop) == (ClosedLoop(4, 2.5), Barrier(3))
    assert not closed.requests.arrival_ns.any()
    assert not barrier.requests.arrival_ns.any()


CLASSES: dict[str, Any] = {
    "kind": "clients",
    "clients": {
        "chat": {"arrivals": {"kind": "poisson", "rate": 6.0}, "lengths": MATH, "priority": 0},
        "batch": {"arrivals": {"kind": "gamma", "rate": 1.0, "cv": 2.0}, "lengths": FIXED, "priority": 5, "num_clients": 4},
    },
}


def test_clients_keep_their_own_rates_lengths_and_priorities() -> None:
    table = generate(validate(CLASSES), 0, max_model_len=32_768, duration_s=2000).requests
    assert table.client_names == ("chat", "batch")
    assert (np.diff(table.arrival_ns) >= 0).all()
    chat, batch = table.take(table.client == 0), table.take(table.client == 1)
    assert len(chat) == pytest.approx(12_000, abs=5 * np.sqrt(12_000))
    assert len(batch) == pytest.approx(8000, abs=5 * 2 * np.sqrt(8000))
    assert set(batch.prompt_tokens) == {100}
    assert set(chat.priority) == {0}
    assert set(batch.priority) == {5}


def test_a_class_is_the_same_whoever_else_sends() -> None:
    together = generate(validate(CLASSES), 0, max_model_len=32_768, duration_s=500).requests
    alone = generate(
        validate({"kind": "clients", "clients": {"chat": CLASSES["clients"]["chat"]}}), 0, max_model_len=32_768, duration_s=500
    ).requests
    for name in ("arrival_ns", "prompt_tokens", "output_tokens"):
        np.testing.assert_array_equal(getattr(together.take(together.client == 0), name), getattr(alone, name))


def test_a_number_of_merged_requests_is_the_beginning_of_a_longer_run() -> None:
    few = generate(validate(CLASSES), 0, max_model_len=32_768, num_requests=700).requests
    many = generate(validate(CLASSES), 0, max_model_len=32_768, duration_s=600).requests
    for name, column in vars(few).items():
        if name not in ("client_names", "content"):
            np.testing.assert_array_equal(column, getattr(many, name)[:700])


GAMMA = {"kind": "gamma", "rate": 1.0, "cv": 1.0}


def asks(lengths: Any = FIXED, **arrivals: Any) -> dict[str, Any]:
    return {"kind": "open", "arrivals": {**GAMMA, **arrivals}, "lengths": lengths}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "rate": (asks(rate=-1.0), "workload.arrivals.rate: input should be greater than 0, not -1.0"),
    "infinite rate": (asks(rate=float("inf")), "workload.arrivals.rate: input should be a finite number, not inf"),
    "cv": (asks(cv=0), "workload.arrivals.cv: input should be greater than or equal to 0.01, not 0"),
    "word": (asks(cv="high"), "workload.arrivals.cv: input should be a valid number"),
    "missing": ({"kind": "open", "arrivals": {"kind": "poisson"}, "lengths": FIXED}, "workload.arrivals.rate: is missing"),
    "kind": (asks(kind="gama"), "workload.arrivals: unknown kind 'gama'; valid: 'gamma', 'poisson', 'uniform', 'preset'"),
    "no kind": ({"arrivals": GAMMA}, "workload: kind is missing"),
    "key": (asks(burst=2), "workload.arrivals: unknown key 'burst'; valid: kind, rate, cv, modulation"),
    "ar1": (
        asks(modulation={"kind": "ar1", "step_s": 60, "log_std": 0.2, "ar1": 1.0}),
        "workload.arrivals.modulation.ar1: input should be less",
    ),
    "profile": (
        asks(modulation={"kind": "hourly", "profile": [1] * 23}),
        "workload.arrivals.modulation.profile: tuple should have at least 24",
    ),
    "no traffic": (asks(modulation={"kind": "hourly", "profile": [0] * 24}), "at least one of the 24 hourly rates must be positive"),
    "preset": (
        {"kind": "open", "arrivals": {"kind": "preset", "name": "thinking", "rate": 1}, "lengths": FIXED},
        "workload.arrivals.name: unknown preset 'thinking'; valid: api_client,",
    ),
    "preset's modulation": (
        {"kind": "open", "arrivals": {"kind": "preset", "name": "chat", "rate": 1, "modulation": "hourly"}, "lengths": FIXED},
        "workload.arrivals: preset chat has no modulation 'hourly'; valid: null, ar1",
    ),
    "data set": (asks({**MATH, "name": "r1-distill-qwen-7b/math50"}), "of r1-distill-qwen-7b it has: aime24, gpqa_diamond, gsm8k, math500"),
    "model": (asks({**MATH, "name": "r1-distill-qwen-8b/math500"}), "did you mean r1-distill-qwen-7b/math500"),
    "nothing like it": (asks({**MATH, "name": "zzz"}), "names are model/dataset; models: deepseek-r1,"),
    "alternative": (asks({**MATH, "alternative": "deer"}), "has no alternative 'deer'; valid: study"),
    "no prompts": (asks({"kind": "catalogue", "name": "qwen3-1.7b/mmlu_pro"}), "no prompt lengths for qwen3-1.7b/mmlu_pro: give prompt"),
    "cap": (asks({**FIXED, "max_tokens": 0}), "workload.lengths.max_tokens: input should be greater than or equal to 1, not 0"),
    "cap below minimum": (
        asks({**FIXED, "output": {"kind": "lognormal", "mu": 6, "sigma": 1, "at_least": 100}, "max_tokens": 50}),
        "workload.lengths: max_tokens 50 is below output.at_least 100",
    ),
    "bounds": (
        asks({**FIXED, "prompt": {"kind": "lognormal", "mu": 6, "sigma": 1, "at_least": 9, "at_most": 8}}),
        "at_most 8 is below at_least 9",
    ),
    "component weight": (
        asks({**FIXED, "output": {"kind": "lognormal_mixture", "components": [[-1, 6, 1]]}}),
        "components: weight -1 must be positive",
    ),
    "part weight": (
        asks({"kind": "mixture", "parts": {"a": {"weight": 0, "lengths": FIXED}}}),
        "workload.lengths.parts.a.weight: input should be greater than 0, not 0",
    ),
    "no parts": (asks({"kind": "mixture", "parts": {}}), "workload.lengths.parts: dictionary should have at least 1 item"),
    "empirical": (asks({**FIXED, "prompt": {"kind": "empirical"}}), "workload.lengths.prompt: give either values or dataset"),
    "questions": (asks({**FIXED, "prompt": {"kind": "empirical", "dataset": "humaneval"}}), "are shipped; valid: gsm8k, math500"),
    "loops": (
        asks({**MATH, "loop_to_cap_rate": 1.5}),
        "workload.lengths.loop_to_cap_rate: input should be less than or equal to 1, not 1.5",
    ),
    "budget of nothing": (asks({**FIXED, "think_budget_tokens": 5}), "think_budget_tokens 5 limits nothing"),
    "budget of a plain model": (
        asks({"kind": "catalogue", "name": "qwen2.5-14b/gsm8k", "think_budget_tokens": 5}),
        "outputs have no thinking",
    ),
    "correlation": (asks({**FIXED, "log_corr": 1.5}), "workload.lengths.log_corr: input should be less than or equal to 0.99"),
    "share": (
        asks({**FIXED, "thinking": {"kind": "constant", "value": 1.0}}),
        "workload.lengths.thinking.value: input should be less than 1",
    ),
    "batch": ({"kind": "barrier", "batch_size": 0, "lengths": FIXED}, "workload.batch_size: input should be greater than or equal to 1"),
    "time scale": ({"kind": "replay", "path": "x", "time_scale": 0}, "workload.time_scale: input should be greater than 0"),
    "format": ({"kind": "replay", "path": "x", "format": "csv"}, "workload.format: input should be 'measured', 'azure'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_spec_that_makes_no_sense_is_refused_by_name_in_one_line(case: str) -> None:
    spec, message = REFUSED[case]
    with pytest.raises(UserError) as refused:
        validate(spec)
    assert message in str(refused.value)
    assert str(refused.value).startswith("workload")
    assert "\n" not in str(refused.value)


def test_what_has_no_end_or_no_request_is_refused() -> None:
    with pytest.raises(UserError, match="duration_s or num_requests"):
        generate(open_spec(), 0, max_model_len=1000)
    with pytest.raises(UserError, match="duration_s or num_requests"):
        generate(validate(CLASSES), 0, max_model_len=1000)
    with pytest.raises(UserError, match="num_requests is needed"):
        generate(validate({"kind": "barrier", "batch_size": 3, "lengths": FIXED}), 0, max_model_len=1000, duration_s=60)
    with pytest.raises(UserError, match="no request arrives"):
        generate(open_spec(rate=1e-6), 0, max_model_len=1000, duration_s=1)
    with pytest.raises(UserError, match="duration_s must be positive"):
        generate(open_spec(), 0, max_model_len=1000, duration_s=-1)
    with pytest.raises(UserError, match="num_requests must be at least 1"):
        generate(open_spec(), 0, max_model_len=1000, num_requests=0)
    with pytest.raises(UserError, match="every prompt has max_model_len 100 tokens or more; the shortest 100"):
        generate(open_spec(FIXED), 0, max_model_len=100, num_requests=5)


def test_a_copied_spec_forgets_nothing_of_its_changes() -> None:
    spec = open_spec()
    shorter = spec.model_copy(update={"lengths": spec.lengths.model_copy(update={"max_tokens": 100})})
    assert generate(spec, 0, max_model_len=32_768, num_requests=100).requests.output_tokens.max() > 100
    assert generate(shorter, 0, max_model_len=32_768, num_requests=100).requests.output_tokens.max() == 100


def test_a_hundred_thousand_requests_take_well_under_a_second() -> None:
    spec = open_spec(modulation={"kind": "ar1", "step_s": 60, "log_std": 0.4, "ar1": 0.9})
    generate(spec, 0, max_model_len=32_768, num_requests=10)
    start = time.process_time()
    generate(spec, 0, max_model_len=32_768, num_requests=100_000)
    assert time.process_time() - start < 0.5


def test_importing_the_package_loads_neither_pandas_nor_scipy() -> None:
    check = "import sys, simulator.workload; sys.exit(any(name in sys.modules for name in ('pandas', 'scipy')))"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=Path(__file__).parents[2])
