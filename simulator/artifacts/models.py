"""The shipped cost models: which file answers for a GPU, a model and an optimization."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

from simulator.errors import NotMeasuredError, UserError

MODELS = Path(__file__).resolve().parents[2] / "models"
"""The folder of cost models: beside the package in a clone, and in an installed distribution too."""

GPU_ALIASES = {"h100": "h100-sxm", "h200": "h200-sxm"}


def find(
    gpu: str,
    model: str,
    *,
    weights: str = "bf16",
    kv_cache_dtype: str = "auto",
    tensor_parallel_size: int = 1,
    speculation: str | None = None,
    root: Path = MODELS,
) -> Path:
    """Path of the cost model that was measured for these options.

    Models of one shape share one measurement: `models/<gpu>/aliases.json` maps their names to the owner's.

    Args:
        gpu: `h100-sxm`, `h200-sxm`, …, or a short name of `GPU_ALIASES`.
        model: such as `r1-distill-qwen-7b`; case does not matter.
        weights: `bf16`, `awq`, `gptq` or `fp8`.
        kv_cache_dtype: `auto` or `fp8`.
        tensor_parallel_size: GPUs of one replica.
        speculation: `<method>-k<K>`, such as `eagle3-k3`.
        root: the folder of cost models.

    Raises:
        NotMeasuredError: nothing was measured for these options; the message lists what was.
    """
    gpu = gpu.lower()
    gpu = GPU_ALIASES.get(gpu, gpu)
    model = model.lower()
    owner = aliases(gpu, root).get(model, model)
    name = artifact_name(weights, kv_cache_dtype, tensor_parallel_size, speculation)
    # Looked up in the listing, not tried as a path: a name with dots or slashes leads nowhere.
    wanted = f"{gpu}/{owner}/{name}"
    shipped = {path.relative_to(root).as_posix(): path for path in artifacts(root)}
    if wanted not in shipped:
        raise NotMeasuredError(
            f"no cost model for {wanted.removesuffix('.json')}; measured{_alternatives(shipped, f'{gpu}/{owner}/', root)}"
        )
    return shipped[wanted]


def measured(gpu: str, model: str, tensor_parallel_size: int = 1, root: Path = MODELS) -> list[tuple[str, str, str]]:
    """(weights, KV-cache dtype, speculation or an empty text) of every cost model of these, in the order of their names."""
    gpu, model = GPU_ALIASES.get(gpu.lower(), gpu.lower()), model.lower()
    folder = root / gpu / aliases(gpu, root).get(model, model)
    found = []
    for path in sorted(folder.glob("*-kv_*-tp*.json")):
        quantized, _, shape = path.stem.rpartition("-tp")
        tensor_parallel, _, speculation = shape.partition("-")
        if int(tensor_parallel) == tensor_parallel_size:
            weights, _, kv_cache_dtype = quantized.partition("-kv_")
            found.append((weights, kv_cache_dtype, speculation))
    return found


def _alternatives(shipped: Iterable[str], like: str, root: Path) -> str:
    """What there is instead: of this GPU and model, else anything."""
    names = [name.removesuffix(".json") for name in shipped]
    same = [name.removeprefix(like) for name in names if name.startswith(like)]
    return f" of {like.rstrip('/')}: {', '.join(same)}" if same else f": {', '.join(names) or f'nothing in {root}'}"


def engine_start_s(artifact: Path) -> float:
    """Seconds from an engine's start to its first step, as the profile beside a cost model has it (weights were not loaded).

    Raises:
        UserError: there is no profile: the model was fitted to a trace, or the file is not one of the shipped.
    """
    profile = artifact.with_suffix(".profile.json.gz")
    if not profile.is_file():
        raise UserError(f"engine_start_s was not measured for {artifact.stem}; give it, such as engine_start_s: 66 (a 7B on an H100)")
    with gzip.open(profile, "rt", encoding="utf-8") as text:
        return float(json.load(text)["engine_start_s"])


def artifact_name(weights: str, kv_cache_dtype: str, tensor_parallel_size: int, speculation: str | None = None) -> str:
    """File name of an artifact: `bf16-kv_auto-tp1.json`."""
    end = "" if speculation is None else f"-{speculation}"
    return f"{weights}-kv_{kv_cache_dtype}-tp{tensor_parallel_size}{end}.json"


def artifacts(root: Path = MODELS) -> list[Path]:
    """All artifacts below `root`, in the order of their names."""
    return sorted(root.glob("*/*/*-kv_*-tp*.json"))


def aliases(gpu: str, root: Path = MODELS) -> dict[str, str]:
    """Models that have the shape of another one, with that one's name.

    Raises:
        UserError: the file is not a JSON object of names.
    """
    path = root / gpu / "aliases.json"
    if not path.is_file():
        return {}
    try:
        names = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(names, dict) or not all(isinstance(owner, str) for owner in names.values()):
        raise UserError(f"{path}: expected an object that maps a model's name to the name of the model of its shape")
    return names
