"""From a profile's options to vLLM's: the one place that knows how vLLM is configured."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from profiler.errors import EngineError
from profiler.options import Profile, shape
from simulator.errors import UserError

RECORD_TO = "HOWMANYGPUS_RECORD_TO"
"""Environment variable: folder to which the scheduler writes. Not in vLLM's configuration, whose hash is the key of its compile cache."""


def require_vllm(gpu: str) -> None:
    """Says in one line what is missing.

    Raises:
        UserError: vLLM, or the GPU, is not here.
    """
    if find_spec("vllm") is None:
        raise UserError(f"the profiler measures vLLM, which is not installed here: run it on a machine with a {gpu} and `pip install vllm`")


def check_device(profile: Profile, num_replicas: int = 1) -> str:
    """The device's name, when it is the kind that the profile is for, and there are enough of it.

    Raises:
        UserError: there is no such device.
    """
    from vllm.platforms import current_platform

    if profile.gpu.device == "cpu":
        return "cpu"
    if not current_platform.is_cuda():
        raise UserError(f"gpu={profile.gpu.name} needs that GPU, and vLLM sees none here; gpu=cpu runs on vLLM's CPU build")
    # vLLM asks the driver for these without opening a context of this process on the GPU, which would take memory there.
    name: str = current_platform.get_device_name(0)
    if profile.gpu.device_name not in name:
        raise UserError(f"gpu={profile.gpu.name} is not what is here ({name}): give the gpu that is, or add it to conf/gpu")
    wanted = profile.tensor_parallel_size * num_replicas
    if (num_gpus := current_platform.device_count()) < wanted:
        replicas = f"num_replicas={num_replicas} with " if num_replicas > 1 else ""
        raise UserError(f"{replicas}tensor_parallel_size={profile.tensor_parallel_size} needs {wanted} GPUs; here are {num_gpus}")
    return name


def prepare_environment(profile: Profile, *, in_process: bool) -> None:
    """Sets what vLLM reads from the environment, before it is imported; what the user has set stays.

    `in_process`: the engine core runs in this process, as the profiler steps it, not in one of its own, as it is served.
    """
    log_level = "INFO" if profile.verbose else "WARNING"
    # stdout is the result, so vLLM's log goes to stderr.
    defaults = {
        **profile.gpu.env,
        "VLLM_LOGGING_LEVEL": log_level,
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if in_process else "1"
    if profile.moe_routing:  # vLLM 0.26 `model_executor/layers/fused_moe/router/routing_simulator_router.py`
        os.environ["VLLM_MOE_ROUTING_SIMULATION_STRATEGY"] = profile.moe_routing


def vllm_config(profile: Profile, *, engine_args: str = "EngineArgs") -> Any:
    """vLLM's whole configuration with the defaults of `vllm serve`, dummy weights and this project's scheduler and worker extension."""
    import vllm.engine.arg_utils
    from vllm.usage.usage_lib import UsageContext

    arguments = getattr(vllm.engine.arg_utils, engine_args)(**engine_arguments(profile))
    try:
        config = arguments.create_engine_config(UsageContext.OPENAI_API_SERVER)
    except (ValueError, NotImplementedError) as error:
        raise EngineError(f"vLLM refuses this combination: {_one_line(error)}") from error
    kind = "RecordingAsyncScheduler" if config.scheduler_config.async_scheduling else "RecordingScheduler"
    config.scheduler_config.scheduler_cls = f"profiler.hook.{kind}"
    return config


def engine_arguments(profile: Profile) -> dict[str, Any]:
    """vLLM's `EngineArgs` of a profile, by name."""
    opt = profile.opt
    arguments: dict[str, Any] = {
        "model": _shape_folder(profile.model.config, opt.quantization_config),
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "dtype": "float32" if opt.weights == "float32" else "bfloat16",
        "kv_cache_dtype": opt.kv_cache_dtype,
        "enable_prefix_caching": bool(opt.enable_prefix_caching),
        "tensor_parallel_size": profile.tensor_parallel_size,
        "gpu_memory_utilization": profile.gpu_memory_utilization,
        "seed": profile.seed,
        "worker_extension_cls": "profiler.probe.WorkerExtension",
        **profile.gpu.engine,
    }
    optional = ("max_model_len", "max_num_batched_tokens", "max_num_seqs", "num_gpu_blocks_override")
    arguments |= {name: value for name in optional if (value := getattr(profile, name)) is not None}
    if profile.max_model_len is not None:
        arguments["max_model_len"] = min(profile.max_model_len, profile.model.config.get("max_position_embeddings", profile.max_model_len))
    if opt.speculative:
        arguments["speculative_config"] = _speculative(profile)
    return arguments


def _speculative(profile: Profile) -> dict[str, Any]:
    spec = profile.opt.speculative
    assert spec is not None
    target = profile.model.config
    config = {
        "method": spec.method,
        "num_speculative_tokens": spec.num_speculative_tokens,
        **spec.engine,
    }
    if profile.gpu.device == "cuda":  # vLLM's CPU build has no synthetic acceptance: there, drafts are judged as they are
        config |= {"rejection_sample_method": "synthetic", "synthetic_acceptance_length": spec.synthetic_acceptance_length}
    if spec.method == "draft_model":
        if spec.draft is None:
            raise UserError("opt.speculative.draft: name the model that drafts, one of conf/model")
        config["model"] = _shape_folder(shape(spec.draft) | {"vocab_size": target["vocab_size"]})
    elif spec.method == "eagle3":
        config["model"] = _shape_folder(_eagle3_head(target))
    return config


def _eagle3_head(target: dict[str, Any]) -> dict[str, Any]:
    """One layer as wide as the target, drafting from its 32,000 most frequent tokens: the shape of published EAGLE-3 heads."""
    taken = (
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
    )
    head = {name: target[name] for name in taken} | {
        "head_dim": target.get("head_dim", target["hidden_size"] // target["num_attention_heads"])
    }
    return head | {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "num_hidden_layers": 1,
        "draft_vocab_size": min(32000, target["vocab_size"]),
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    }


def _shape_folder(config: dict[str, Any], quantization: dict[str, Any] | None = None) -> str:
    """Writes `config.json` where vLLM can read it. The same shape gets the same path, which is part of the key of vLLM's compile cache."""
    text = json.dumps(config | ({"quantization_config": quantization} if quantization else {}), indent=1)
    folder = Path(tempfile.gettempdir()) / f"howmanygpus-{os.getuid()}" / sha256(text.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(text)
    return str(folder)


def _one_line(error: BaseException) -> str:
    """An error's kind and the beginning of what it says: the cause stands in the first lines (pydantic's in the third)."""
    words = " ".join(str(error).splitlines()[:3]).split()
    return f"{type(error).__name__}: {' '.join(words)[:400]}" if words else type(error).__name__


@contextmanager
def failures(what: str) -> Iterator[None]:
    """vLLM fails in many types of its own and of torch's; whichever it is, one line says it."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(f"{what}: {_one_line(error)}") from error
