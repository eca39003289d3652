"""What to profile: conf/profile.yaml with its groups, composed by Hydra and checked here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from profiler.points import Kind
from simulator.errors import UserError

CONF = Path(__file__).resolve().parent.parent / "conf"


class Strict(BaseModel):
    """Base of the options: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Model(Strict):
    """A model's shape: its public `config.json`, no weights."""

    name: str
    shape: str
    """The model that owns this shape; those of one shape share one measured artifact."""
    config: dict[str, Any]


class Gpu(Strict):
    """A kind of machine."""

    name: str
    device: Literal["cuda", "cpu"]
    device_name: str
    """What the driver's name of the device must contain."""
    env: dict[str, str]
    """Environment that vLLM reads at its start."""
    engine: dict[str, Any]
    """Engine options that this machine needs, under vLLM's names."""


class Speculative(Strict):
    """Speculative decoding under vLLM's option names; drafts are accepted synthetically, since dummy weights agree on nothing."""

    method: Literal["ngram", "eagle3", "draft_model"]
    num_speculative_tokens: int = Field(ge=1)
    draft: str | None = None
    """Model whose shape drafts (`draft_model`)."""
    synthetic_acceptance_length: float = Field(ge=1)
    engine: dict[str, Any] = {}
    """Further options of the method."""


class Opt(Strict):
    """An optimization, or several together."""

    weights: Literal["bf16", "awq", "gptq", "fp8", "float32"]
    quantization_config: dict[str, Any] | None
    kv_cache_dtype: str
    enable_prefix_caching: bool | None
    """null: off, for what a profile sends must not be found from the time before."""
    speculative: Speculative | None


class Sampling(Strict):
    """Sampling as served: it costs time too."""

    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)


class Profile(Strict):
    """One run of the profiler."""

    model: Model
    gpu: Gpu
    opt: Opt
    tensor_parallel_size: int = Field(ge=1)
    max_model_len: int | None = Field(ge=2)
    gpu_memory_utilization: float = Field(gt=0, le=1)
    max_num_batched_tokens: int | None = Field(ge=1)
    max_num_seqs: int | None = Field(ge=1)
    num_gpu_blocks_override: int | None = Field(ge=2)
    weight_values: Literal["dummy", "realistic"]
    moe_routing: Literal["uniform_random", "normal_routing"] | None
    """Which experts get a token; None: as the router of random weights decides."""
    sampling: Sampling
    budget_s: float | None = Field(gt=0)
    """For the whole run, engine start included; None: as long as it takes."""
    kinds: list[Kind]
    seed: int
    out: Path | None
    verbose: bool

    @property
    def label(self) -> str:
        """`<weights>-kv_<dtype>-tp<n>[-<method>-k<K>]`: the artifact's name."""
        label = f"{self.opt.weights}-kv_{self.opt.kv_cache_dtype}-tp{self.tensor_parallel_size}"
        if self.opt.speculative:
            label += f"-{self.opt.speculative.method}-k{self.opt.speculative.num_speculative_tokens}"
        return label

    @property
    def folder(self) -> Path:
        """Where results go."""
        return self.out or Path("results") / "profiles" / self.gpu.name / self.model.shape / self.label


class Part(Strict):
    """One of several traces of a recording: what differs from the recording's own `workload`, `duration_s` and `seed`."""

    name: str = Field(pattern=r"^[\w.+-]+$")
    """Of the trace's folder."""
    rate: float | None = Field(None, gt=0)
    cv: float | None = Field(None, gt=0)
    duration_s: float | None = Field(None, gt=0)
    seed: int | None = None
    workload: str | dict[str, Any] = {}
    """A name of conf/workload, or changes to the recording's."""


class SharedPrefixes(Strict):
    """Prompts that begin alike: every request shares its head with those of its group, which is drawn evenly."""

    num_prefixes: int = Field(ge=1)
    prefix_tokens: int = Field(ge=1)
    """Length of a shared head; it comes before the workload's own prompt."""


class Recording(Profile):
    """One run of the recorder: the engine of a profile, under traffic."""

    name: str | None
    """Of the trace; by default what was served."""
    workload: dict[str, Any]
    """The traffic, in the simulator's own terms."""
    duration_s: float = Field(gt=0)
    """For which requests are sent; those sent are served to their end."""
    workloads: list[Part]
    """Several traces of one engine start, one after the other, each in its own folder; empty: one trace, of `workload`."""
    shared_prefixes: SharedPrefixes | None
    num_replicas: int = Field(ge=1)
    """Engines, each on `tensor_parallel_size` GPUs of its own."""
    router: str
    """In front of several replicas: the simulator's."""
    client: Literal["engine", "http"]
    """`http`: through vLLM's OpenAI server."""
    logits: Literal["dummy", "trained"]
    """What the sampler works on: what dummy weights give, or a trained model's (as `python -m profiler` measures)."""

    @property
    def folder(self) -> Path:
        """Where the trace goes, or the folders of several."""
        return self.out or Path("results") / "traces" / f"{self.gpu.name}-{self.model.name}-{self.label}"


Options = TypeVar("Options", bound=Profile)


def load(overrides: list[str], what: type[Options]) -> Options:
    """Composes `conf/profile.yaml` (or `record.yaml`) with `overrides` such as `model=qwq-32b opt=awq`, and checks the result.

    Raises:
        UserError: an unknown name, key or value, in one line.
    """
    overrides = [part for override in overrides for part in _model_by_path(override)]
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = OmegaConf.to_container(compose(what.__name__.lower(), overrides=overrides), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(error)) from None
    assert isinstance(composed, dict)
    model = composed["model"]
    if path := model.pop("path", None):
        model |= _read_shape(Path(path))
    elif model.get("config") is None:
        model["config"] = shape(model["shape"])
    try:
        options = what.model_validate(composed)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: {first['msg']}, got {first['input']!r}") from None
    if "shared" in options.kinds and not options.opt.enable_prefix_caching:
        raise UserError("kinds: shared needs the prefix cache, by which sequences share; give opt=prefix_caching, too")
    return options


def shape(name: str) -> dict[str, Any]:
    """The `config.json` of the model `name` in `conf/model/`."""
    path = CONF / "model" / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise UserError(f"model {name!r}: no such model in conf/model; known are {known}, or the path of a config.json")
    loaded = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(loaded, dict)
    config = loaded.get("config")
    return config if isinstance(config, dict) else shape(loaded["shape"])


def aliases() -> dict[str, str]:
    """Models that have another one's shape, and that one's name."""
    owners = {path.stem: OmegaConf.select(OmegaConf.load(path), "shape") for path in sorted((CONF / "model").glob("*.yaml"))}
    return {name: str(owner) for name, owner in owners.items() if owner not in (None, name)}


def _model_by_path(override: str) -> list[str]:
    """`model=PATH` names a Hugging Face config.json, or the folder that holds one."""
    key, _, value = override.partition("=")
    if key == "model" and ("/" in value or value.endswith(".json")):
        return ["model=from_path", f"model.path='{value}'"]
    return [override]


def _read_shape(path: Path) -> dict[str, Any]:
    path = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"model {path}: no such file; give a Hugging Face config.json or a name of conf/model") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"model {path}: not readable as JSON ({error})") from None
    missing = {"architectures", "hidden_size", "num_hidden_layers"} - set(config)
    if missing:
        raise UserError(f"model {path}: {', '.join(sorted(missing))} missing: not a language model's config.json")
    name = (path.parent.name if path.name == "config.json" else path.stem).lower()
    return {"name": name, "shape": name, "config": config}


def _explain(error: Exception) -> str:
    """Hydra's message on one line, without its search path."""
    message, _, _ = str(error).partition("Config search path")
    return " ".join(message.split())
