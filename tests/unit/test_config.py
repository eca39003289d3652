"""Configurations: composition, defaults from the cost model, and that what is shipped is valid."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from simulator.artifacts.models import MODELS
from simulator.compose import CONF
from simulator.config import Config, load
from simulator.engine import EngineConfig
from simulator.errors import UserError

ARTIFACT = MODELS / "h100-sxm" / "r1-distill-qwen-7b" / "bf16-kv_auto-tp1.json"
SIMULATE = CONF / "simulate.yaml"
RUN = ["run.num_requests=30", "run.duration_s=null"]


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("path", [p for p in sorted(CONF.glob("*.yaml")) if "\ncommand:" in p.read_text()], ids=lambda path: path.name)
def test_shipped_configurations_are_valid(path: Path) -> None:
    config = load(path)
    assert config.name == path.stem
    if config.command == "crossover":
        assert config.accepted() is not None
        config = config.without_speculation()
    assert config.cost_model_path.is_relative_to(CONF.parent / "models")
    config.engine_config(config.load_cost())
    config.pools()


@pytest.mark.parametrize("name", choices("workload"))
def test_shipped_workloads_run(name: str) -> None:
    scenario = load(SIMULATE, [f"workload={name}", *RUN]).scenario()
    assert len(scenario.workload.requests) + scenario.workload.rejected == 30


@pytest.mark.parametrize("name", choices("slo"))
def test_shipped_slos_are_valid(name: str) -> None:
    config = load(SIMULATE, [f"slo={name}"])
    assert config.slo is not None
    assert config.slo.limits


def test_what_the_file_does_not_say_was_measured(tmp_path: Path) -> None:
    config = load(SIMULATE, ["engine.max_num_seqs=64", "engine.watermark=0.01"])
    cost = config.load_cost()
    engine, memory = config.engine_config(cost), cost.artifact.memory
    assert (engine.max_num_seqs, engine.watermark) == (64, 0.01)
    assert (engine.num_gpu_blocks, engine.block_size) == (memory.num_gpu_blocks, memory.block_size)
    assert (engine.max_model_len, engine.max_num_batched_tokens) == (memory.max_model_len, memory.max_num_batched_tokens)
    assert load(SIMULATE, ["engine.num_gpu_blocks_override=5000"]).engine_config(cost).num_gpu_blocks == 5000


def test_seats_are_no_more_than_tokens_of_a_step_as_in_vllm() -> None:
    def engine(*overrides: str) -> EngineConfig:
        config = load(CONF / "capacity_planning.yaml", list(overrides))
        return config.engine_config(config.load_cost())

    # What nobody asked for is lowered; what somebody did is refused, as `vllm serve` does.
    assert engine("engine.max_num_batched_tokens=256").max_num_seqs == 256
    assert engine("engine.max_num_batched_tokens=2048").max_num_seqs == engine().max_num_seqs == 1024
    assert EngineConfig(num_gpu_blocks=4000, max_num_batched_tokens=64).max_num_seqs == 64
    for budget, seats in ((256, 512), (512, 1024)):
        with pytest.raises(UserError, match=f"max_num_batched_tokens {budget} must be at least max_num_seqs {seats}") as error:
            engine(f"engine.max_num_batched_tokens={budget}", f"engine.max_num_seqs={seats}")
        assert "\n" not in str(error.value)


def test_overrides_win_over_the_file_and_the_file_over_its_groups(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        "defaults: [{model: r1-distill-qwen-7b}, {gpu: h100-sxm}, {workload: math500}, _self_]\n"
        "command: simulate\nworkload: {arrivals: {rate: 7}}\nrun: {duration_s: 60}\n"
    )
    assert load(own).workload.arrivals.rate == 7  # type: ignore[union-attr]
    assert load(own, ["workload.arrivals.rate=9"]).workload.arrivals.rate == 9  # type: ignore[union-attr]
    # A key that no file holds is the schema's to judge.
    assert load(own, ["run.horizon_s=30"]).run.horizon_s == 30


def test_a_folder_of_the_users_own_adds_groups(tmp_path: Path) -> None:
    folder = tmp_path / "it's a folder, with = and spaces"
    (folder / "workload").mkdir(parents=True)
    (folder / "workload" / "mine.yaml").write_text(
        "kind: barrier\nbatch_size: 3\nlengths: {kind: catalogue, name: r1-distill-qwen-7b/gsm8k, max_tokens: 512}\n"
    )
    own = folder / "own.v2.yaml"
    own.write_text(
        "defaults: [{model: qwq-32b}, {gpu: h100-sxm}, {workload: mine}, _self_]\ncommand: simulate\nrun: {num_requests: 6}\n"
        f"cost_model: {ARTIFACT}\n"
    )
    config = load(own)
    assert config.name == "own.v2"
    assert config.workload.kind == "barrier"
    assert load(own, ["workload=closed_loop"]).workload.kind == "closed"
    assert len(config.scenario().workload.requests) == 6


def test_a_plain_file_needs_no_groups(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        "command: simulate\nname: mine\nmodel: r1-distill-qwen-7b\ngpu: h100\nrun: {num_requests: 3}\n"
        "workload: {kind: closed, num_clients: 2, lengths: {kind: catalogue, name: r1-distill-qwen-7b/gsm8k, max_tokens: 512}}\n"
    )
    config = load(own)
    assert (config.name, config.model.name, config.opt.weights) == ("mine", "r1-distill-qwen-7b", "bf16")
    assert config.cost_model_path == ARTIFACT
    assert config.slo is None


def test_models_of_one_shape_share_a_cost_model() -> None:
    assert load(SIMULATE, ["model=qwen2.5-math-7b"]).cost_model_path == ARTIFACT


def test_a_configuration_is_immutable_and_survives_its_own_dump() -> None:
    config = load(SIMULATE)
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3  # type: ignore[misc]
    assert Config.model_validate(config.model_dump(mode="json")) == config


def test_a_group_is_removed_by_null_and_named_when_it_is_not_there(tmp_path: Path) -> None:
    assert load(SIMULATE, ["slo=null"]).slo is None
    own = tmp_path / "own.yaml"
    own.write_text("command: simulate\n")
    with pytest.raises(UserError, match=r"'slo': the file has no such entry in its defaults; add one, or write \+slo="):
        load(own, ["slo=interactive"])


def test_shared_options_of_the_profiler_are_allowed_and_typos_are_not() -> None:
    assert load(SIMULATE, ["gpu=h200-sxm"]).gpu.device == "cuda"
    with pytest.raises(UserError, match="gpu: unknown key 'devce'; valid: name, device"):
        load(SIMULATE, ["gpu.devce=cuda"])


def test_every_finding_is_counted() -> None:
    with pytest.raises(UserError, match=r"seed: .* not -1 \(and 1 more\)"):
        load(SIMULATE, ["seed=-1", "run.duration_s=-3"])


@pytest.mark.parametrize(("overrides", "caches"), [([], True), (["opt=prefix_caching"], True), (["opt=no_prefix_caching"], False)])
def test_prefixes_are_cached_unless_told_otherwise_as_in_vllm(overrides: list[str], caches: bool) -> None:
    config = load(SIMULATE, overrides)
    assert config.engine_config(config.load_cost()).enable_prefix_caching is caches
    told = load(SIMULATE, [*overrides, "+engine.enable_prefix_caching=false"])
    assert told.engine_config(told.load_cost()).enable_prefix_caching is False
