"""A whole run, as a configuration file describes it: composed by Hydra, checked by a typed schema."""

from __future__ import annotations

import re
import warnings
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from simulator.acceptance import AcceptanceSpec
from simulator.cost import CostModel
from simulator.engine import EngineConfig, SpeculativeConfig
from simulator.errors import UserError
from simulator.models import find
from simulator.router import ROUTERS
from simulator.simulate import Scenario
from simulator.slo import Slos
from simulator.speculation import Acceptance
from simulator.workload import OpenSpec, WorkloadSpec, generate, one_line
from simulator.workload.base import Spec

CONF = Path(__file__).resolve().parent.parent / "conf"
"""The shipped configurations and their groups: always on the search path."""


class Named(Spec):
    """A choice that may be written as its name alone."""

    name: str

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data


class ModelChoice(Named):
    """A model, from `conf/model/`."""

    shape: str | None = None
    """The model that was measured for this one: same layers, widths and vocabulary."""
    config: dict[str, Any] | None = None
    """Its public `config.json`; the profiler's."""
    path: str | None = None


class GpuChoice(Named):
    """A GPU, from `conf/gpu/`; what else is there is the profiler's."""

    device: str = "cuda"
    device_name: str = ""
    env: dict[str, str] = Field({})
    engine: dict[str, Any] = Field({})


class OptChoice(Spec):
    """An optimization, from `conf/opt/`."""

    weights: str = "bf16"
    kv_cache_dtype: str = "auto"
    enable_prefix_caching: bool = False
    speculative: dict[str, Any] | None = None
    quantization_config: dict[str, Any] | None = None

    @field_validator("speculative")
    @classmethod
    def _can_be_scheduled(cls, speculative: dict[str, Any] | None) -> dict[str, Any] | None:
        """What else is there is the profiler's."""
        if speculative is not None:
            try:
                SpeculativeConfig.model_validate({key: speculative.get(key) for key in SpeculativeConfig.model_fields})
            except ValidationError as error:
                raise ValueError(one_line(error, speculative, "speculative")) from None
        return speculative

    @property
    def drafts(self) -> SpeculativeConfig | None:
        """How the engine speculates, if it does."""
        if self.speculative is None:
            return None
        return SpeculativeConfig(**{key: self.speculative[key] for key in SpeculativeConfig.model_fields})


class ClusterConfig(Spec):
    """The replicas and what spreads requests over them."""

    num_replicas: int = Field(1, ge=1)
    """Of `command: simulate`; a plan tries several."""
    router: str = "least_requests"

    @field_validator("router")
    @classmethod
    def _known(cls, router: str) -> str:
        if router not in ROUTERS:
            raise ValueError(f"unknown router '{router}'; valid: {', '.join(sorted(ROUTERS))}")
        return router


class RunConfig(Spec):
    """How much of the traffic is simulated; a plan decides by itself."""

    duration_s: float | None = Field(None, gt=0)
    """Requests that arrive before; the run goes on until all are answered."""
    num_requests: int | None = Field(None, ge=1)
    horizon_s: float | None = Field(None, gt=0)
    """The run ends here; unfinished requests are censored."""
    stride: int | None = Field(None, ge=1)
    """1: the reference engine, step by step; the result is the same."""
    sample_s: float = Field(1.0, gt=0)
    """Distance of the timeline's samples."""


class PlanConfig(Spec):
    """How `command: plan` searches."""

    max_gpus: int = Field(64, ge=1)
    num_seeds: int = Field(4, ge=2)
    """Runs of every candidate, each with traffic of its own; all candidates see the same."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    hours: float | None = Field(None, gt=0)
    """Simulated steady state of a run; null: as long as the answer needs."""
    workers: int | None = Field(None, ge=1)
    """Processes; null: one a core."""


class CrossoverConfig(Spec):
    """What `command: crossover` compares with."""

    baseline: str | None = None
    """Path of the cost model without speculation; null: the measured one."""
    max_batch: int | None = Field(None, ge=1)


class Config(Spec):
    """One run of `python -m simulator`."""

    command: Literal["simulate", "plan", "crossover"]
    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Of the folder of its results; the file's name unless given."""
    seed: int = Field(0, ge=0)
    model: ModelChoice
    gpu: GpuChoice
    opt: OptChoice = OptChoice()
    acceptance: AcceptanceSpec = AcceptanceSpec()
    """What the drafts of `opt.speculative` are worth on this traffic."""
    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs of one replica."""
    cost_model: str | None = None
    """Path of an artifact; null: the one that was measured for model, GPU and optimization."""
    engine: dict[str, Any] = Field({})
    """vLLM's option names; what is not given is as it was when the cost model was measured."""
    workload: WorkloadSpec
    cluster: ClusterConfig = ClusterConfig()
    run: RunConfig = RunConfig()
    slo: Slos | None = None
    plan: PlanConfig = PlanConfig()
    crossover: CrossoverConfig = CrossoverConfig()
    out: str = "results"
    """Folder that gets the folder of the results."""

    @field_validator("engine")
    @classmethod
    def _engine_options(cls, engine: dict[str, Any]) -> dict[str, Any]:
        valid = sorted({*EngineConfig.model_fields, "num_gpu_blocks_override"} - {"num_gpu_blocks", "speculative"})
        for key in engine:
            if key not in valid:
                near = get_close_matches(key, valid, n=1)
                raise ValueError(f"unknown key '{key}'; {f'did you mean {near[0]}? ' if near else ''}valid: {', '.join(valid)}")
        return engine

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.command == "plan" and self.slo is None:
            raise ValueError("command: plan needs a limit in slo, such as slo.tpot_ms.p99=13")
        endless = isinstance(self.workload, OpenSpec) or self.workload.kind in ("clients", "sessions")
        if self.command == "simulate" and endless and self.run.duration_s is None and self.run.num_requests is None:
            raise ValueError("give run.duration_s or run.num_requests, else the arrivals never end")
        return self

    @property
    def cost_model_path(self) -> Path:
        """The artifact's file.

        Raises:
            UserError: nothing was measured for these options.
        """
        if self.cost_model is not None:
            return Path(self.cost_model)
        name = self.model.shape or self.model.name
        return find(
            self.gpu.name,
            name,
            weights=self.opt.weights,
            kv_cache_dtype=self.opt.kv_cache_dtype,
            tensor_parallel_size=self.tensor_parallel_size,
            speculation=None if self.opt.drafts is None else self.opt.drafts.name,
        )

    def load_cost(self) -> CostModel:
        """The cost model.

        Raises:
            UserError: there is none, its file is corrupt, or it was measured with other drafts.
        """
        cost = CostModel.load(self.cost_model_path)
        asked = None if self.opt.drafts is None else self.opt.drafts.name
        if cost.artifact.speculation != asked:
            measured = cost.artifact.speculation or "no speculation"
            raise UserError(f"cost model {self.cost_model_path}: measured with {measured}, opt has {asked or 'none'}")
        return cost

    def without_speculation(self) -> Config:
        """The same without drafts."""
        opt = self.opt.model_copy(update={"speculative": None})
        return self.model_copy(update={"opt": opt, "cost_model": self.crossover.baseline})

    def accepted(self) -> Acceptance | None:
        """How many drafts are accepted; None without speculation.

        Raises:
            UserError: that is not known.
        """
        return None if self.opt.drafts is None else self.acceptance.resolve(self.opt.drafts)

    def engine_config(self, cost: CostModel) -> EngineConfig:
        """The engine: the options given, and for the rest what held when `cost` was measured.

        Raises:
            UserError: an option makes no sense.
        """
        memory = cost.artifact.memory
        given = {key: value for key, value in self.engine.items() if value is not None}
        blocks = given.pop("num_gpu_blocks_override", memory.num_gpu_blocks)
        measured = {name: getattr(memory, name) for name in ("block_size", "max_model_len", "max_num_batched_tokens", "max_num_seqs")}
        from_opt = {"enable_prefix_caching": self.opt.enable_prefix_caching}
        options = {**measured, **from_opt, **given, "num_gpu_blocks": blocks, "speculative": self.opt.drafts}
        try:
            return EngineConfig.model_validate(options)
        except ValidationError as error:
            message = one_line(error, options, "engine")
            raise UserError(message.replace("engine.num_gpu_blocks:", "engine.num_gpu_blocks_override:")) from None

    def scenario(self) -> Scenario:
        """The run of `command: simulate`, its workload drawn.

        Raises:
            UserError: the workload, the engine or the cost model makes no sense.
        """
        cost, run = self.load_cost(), self.run
        engine = self.engine_config(cost)
        workload = generate(
            self.workload, self.seed, max_model_len=engine.max_model_len, duration_s=run.duration_s, num_requests=run.num_requests
        )
        return Scenario(
            workload=workload,
            engine=engine,
            cost=cost,
            num_replicas=self.cluster.num_replicas,
            router=self.cluster.router,
            seed=self.seed,
            stride=run.stride,
            horizon_s=run.horizon_s,
            sample_s=run.sample_s,
            acceptance=self.accepted(),
        )


def load(path: str | Path, overrides: list[str] | None = None) -> Config:
    """The configuration in the file `path`, with `overrides` such as `workload=aime24` or `workload.arrivals.rate=25`.

    The file may use the groups of its own folder and those of the shipped `conf/`.

    Raises:
        UserError: anything is wrong with it.
    """
    path = Path(path)
    composed = compose_file(path, overrides or [])
    composed = {"name": path.stem, **composed}
    try:
        return Config.model_validate(composed)
    except ValidationError as error:
        where = one_line(error, composed, "config").removeprefix("config.").removeprefix("config: ")
        raise UserError(f"{path}: {where}") from None


def compose_file(path: Path, overrides: list[str]) -> dict[str, Any]:
    """The values of the file `path` with its groups and the overrides, as Hydra composes them; no schema has seen them yet.

    Raises:
        UserError: the file or an override is not readable.
    """
    _check_file(path)
    import yaml  # type: ignore[import-untyped]
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    folder = path.resolve().parent
    parsed = [_override(text, (folder, CONF)) for text in overrides]
    shipped = str(CONF).replace("\\", "\\\\").replace("'", "\\'")
    try:
        with warnings.catch_warnings(), initialize_config_dir(str(folder), version_base="1.3"):
            # A defaults list without `_self_` means what everyone expects: the file wins over its groups.
            warnings.simplefilter("ignore", UserWarning)
            composed = compose(path.stem, overrides=[f"hydra.searchpath=['file://{shipped}']", *parsed])
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not readable as YAML: {_flat(error)}") from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path}: {_explain(error)}") from None
    if not isinstance(plain, dict):
        raise UserError(f"{path}: expected keys such as command, model, gpu, workload; it holds a list")
    return {str(key): value for key, value in plain.items()}


def _check_file(path: Path) -> None:
    if path.suffix != ".yaml":
        raise UserError(f"{path}: a configuration is a file that ends in .yaml; shipped ones: {_shipped()}")
    if not path.is_file():
        raise UserError(f"{path}: no such file; shipped configurations: {_shipped()}")
    try:
        path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as text ({_flat(error)})") from None


def _shipped() -> str:
    commands = [path.name for path in sorted(CONF.glob("*.yaml")) if re.search("^command:", path.read_text(encoding="utf-8"), re.MULTILINE)]
    return ", ".join(f"conf/{name}" for name in commands)


def _override(text: str, folders: tuple[Path, ...]) -> str:
    """The override in Hydra's grammar: groups as they are; keys may be new, for the schema knows them, not the file."""
    match = re.fullmatch(r"(?P<sign>[+~]{0,2})(?P<key>[\w./@:-]+)(?P<value>=.*)?", text, re.DOTALL)
    if match is None or (match["value"] is None and match["sign"] != "~"):
        raise UserError(f"override '{text}': write key=value, such as workload.arrivals.rate=25 or workload=aime24")
    if re.match(r"hydra\b", match["key"]):
        raise UserError(f"override '{text}': Hydra's own settings change nothing here")
    if match["sign"] or any((folder / match["key"]).is_dir() for folder in folders):
        return f"~{match['key']}" if match["value"] == "=null" else text
    return f"++{text}"


def _explain(error: Exception) -> str:
    """Hydra's explanation in one line, without what only its own command line can do."""
    from hydra.errors import OverrideParseException
    from omegaconf.errors import MissingMandatoryValue

    if isinstance(error, OverrideParseException):
        return f"override '{error.override.lstrip('+')}' is malformed; quote a value with special characters: key='…'"
    if isinstance(error, MissingMandatoryValue):
        key = str(error.full_key or _flat(error).rpartition(" ")[2])
        return f"{key} has no value; give one, such as {key}=…"
    text = _flat(error).replace("'++", "'")
    named = text.partition("'")[2].partition("'")[0]
    if "--multirun" in text:
        return f"override '{named}': give one value; a list is written key=[a,b]"
    if "No match in the defaults list" in text:
        return f"override of '{named}': the file has no such entry in its defaults; add one, or write +{named}=…"
    return re.sub(r" (See https?://|Config search path:).*$", "", text)


def _flat(error: Exception) -> str:
    return " ".join(str(error).split())
