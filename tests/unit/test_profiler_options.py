"""`python -m profiler`'s options: what composes, and what is refused in one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from profiler.options import CONF, Profile, Recording, load, shape
from simulator.errors import UserError
from simulator.workload import validate

MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem != "from_path")


def test_options_combine() -> None:
    profile = load(["model=qwq-32b", "opt=awq", "opt.kv_cache_dtype=fp8", "tensor_parallel_size=2"], Profile)
    assert profile.label == "awq-kv_fp8-tp2"
    assert profile.opt.quantization_config == {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}


def test_models_of_one_shape_share_their_owners_folder() -> None:
    assert load(["model=qwq-32b"], Profile).folder == load(["model=r1-distill-qwen-32b"], Profile).folder


# Parameters in units of 10^9, as the model cards give them.
PARAMETERS = {
    "r1-distill-qwen-1.5b": 1.78, "r1-distill-qwen-7b": 7.62, "r1-distill-qwen-14b": 14.77, "r1-distill-qwen-32b": 32.76,
    "r1-distill-llama-8b": 8.03, "r1-distill-llama-70b": 70.55, "qwen3-8b": 8.19, "qwen3-14b": 14.77, "qwen3-32b": 32.76,
    "qwen3-30b-a3b": 30.53,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_shapes_have_the_published_number_of_parameters(name: str) -> None:
    c = shape(name)
    head_dim = c.get("head_dim", c["hidden_size"] // c["num_attention_heads"])
    attention = 2 * c["hidden_size"] * head_dim * (c["num_attention_heads"] + c["num_key_value_heads"])
    if experts := c.get("num_experts"):
        mlp = experts * (3 * c["hidden_size"] * c["moe_intermediate_size"] + c["hidden_size"])
    else:
        mlp = 3 * c["hidden_size"] * c["intermediate_size"]
    embeddings = c["vocab_size"] * c["hidden_size"] * (1 if c["tie_word_embeddings"] else 2)
    assert (c["num_hidden_layers"] * (attention + mlp) + embeddings) / 1e9 == pytest.approx(PARAMETERS[name], rel=0.002)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_loads(name: str) -> None:
    assert load([f"model={name}"], Profile).model.config["num_hidden_layers"] > 0


@pytest.mark.parametrize("opt", sorted(path.stem for path in (CONF / "opt").glob("*.yaml")))
@pytest.mark.parametrize("gpu", sorted(path.stem for path in (CONF / "gpu").glob("*.yaml")))
def test_every_optimization_and_gpu_loads(opt: str, gpu: str) -> None:
    assert load([f"opt={opt}", f"gpu={gpu}"], Profile).label


def test_a_config_json_by_path(tmp_path: Path) -> None:
    folder = tmp_path / "My-Model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(shape("tiny")))
    for path in (folder, folder / "config.json"):
        model = load([f"model={path}"], Profile).model
        assert (model.name, model.config) == ("my-model", shape("tiny"))


def test_traffic_of_a_recording_is_the_simulators() -> None:
    recording = load(["model=tiny", "workload=math500", "workload.arrivals.rate=3"], Recording)
    assert validate(recording.workload)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model=nope"], "model/nope"),
        (["model=/nope/config.json"], "no such file"),
        (["opt.speed=3"], "opt.speed"),
        (["budget_s=soon"], "budget_s"),
        (["budget_s=-1"], "budget_s"),
        (["gpu_memory_utilization=2"], "gpu_memory_utilization"),
        (["kinds=[decode,encode]"], "kinds.1"),
        (["kinds=[decode,shared]"], "give opt=prefix_caching"),
        (["nonsense"], "nonsense"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(arguments: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        load(arguments, Profile)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="hidden_size"):
        load([f"model={tmp_path}/config.json"], Profile)


@pytest.mark.parametrize("command", ["profiler", "profiler.record"])
def test_without_vllm_one_line_says_what_is_missing(command: str) -> None:
    # -S with only the dependencies' own folders would still find vLLM where it is installed: hide it by name.
    hide = f"import sys, runpy; sys.modules['vllm'] = None; sys.argv = ['x']; runpy.run_module({command!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "vLLM" in done.stderr
