"""A whole run, as a configuration file describes it: composed by Hydra, checked by a typed schema."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from simulator.artifacts.memory import blocks_for
from simulator.artifacts.models import engine_start_s, find
from simulator.clients.patience import ClientConfig
from simulator.cluster import Group
from simulator.comparing.comparison import CompareConfig
from simulator.compose import compose_file
from simulator.cost import CostModel
from simulator.drafts.acceptance import AcceptanceSpec
from simulator.engine import EngineConfig, SpeculativeConfig
from simulator.errors import UserError
from simulator.fleet.autoscaler import Autoscaling
from simulator.fleet.disaggregation import Disaggregation, bytes_per_block
from simulator.fleet.outages import Outages
from simulator.fleet.pools import PoolConfig
from simulator.fleet.spares import Spares
from simulator.planning.slo import Slos
from simulator.policies.policy import VLLM, Policy
from simulator.policies.predictor import Predictor, foretell
from simulator.routers import PREDICTIVE, ROUTERS
from simulator.simulate import Scenario
from simulator.speculation import Acceptance
from simulator.workload import BarrierSpec, OpenSpec, WorkloadSpec, generate, one_line
from simulator.workload.base import Spec

Started = TypeVar("Started", Outages, Autoscaling)


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
    enable_prefix_caching: bool | None = None
    """null: as vLLM does unless told otherwise, on."""
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
    pools: tuple[PoolConfig, ...] = ()
    """Further replicas behind the same router: another GPU, other weights, other options. A plan sizes the main pool beside them."""

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
    opts: Literal["all"] | list[str] | dict[str, list[str]] | None = None
    """Optimizations to weigh against each other: names from `conf/opt/`, or overrides by name, or `all` that were measured."""
    max_accuracy_drop: float | None = Field(None, ge=0)
    """Percentage points that an optimization may lose by what is published; null: as long as it does not collapse."""
    workers: int | None = Field(None, ge=1)
    """Processes; null: one a core."""
    spares: Spares | None = None
    """Says how many nodes to own where nodes fail; null: not asked."""


class CrossoverConfig(Spec):
    """What `command: crossover` compares with."""

    baseline: str | None = None
    """Path of the cost model without speculation; null: the measured one."""
    max_batch: int | None = Field(None, ge=1)


class Config(Spec):
    """One run of `python -m simulator`."""

    command: Literal["simulate", "plan", "compare", "crossover"]
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
    predictor: Predictor | None = None
    """Of output lengths, for policies and routers that go by them."""
    policy: Policy = VLLM
    """What vLLM's scheduler lacks."""
    cluster: ClusterConfig = ClusterConfig()
    clients: ClientConfig | None = None
    """Timeouts, retries, patience, rate limits; null: clients wait for every answer."""
    outages: Outages | None = None
    """Failures, drains and rolling deploys, of `command: simulate`."""
    autoscaling: Autoscaling | None = None
    """Of `command: simulate`; `cluster.num_replicas` are there at the start."""
    run: RunConfig = RunConfig()
    slo: Slos | None = None
    plan: PlanConfig = PlanConfig()
    crossover: CrossoverConfig = CrossoverConfig()
    compare: CompareConfig | None = None
    out: str = "results"
    """Folder that gets the folder of the results."""

    disaggregation: Disaggregation | None = None
    """Prefill replicas beside those of the cluster, which then only decode."""

    @field_validator("engine")
    @classmethod
    def _engine_options(cls, engine: dict[str, Any]) -> dict[str, Any]:
        valid = sorted(
            {*EngineConfig.model_fields, "num_gpu_blocks_override", "gpu_memory_utilization"} - {"num_gpu_blocks", "speculative"}
        )
        for key in engine:
            if key not in valid:
                near = get_close_matches(key, valid, n=1)
                raise ValueError(f"unknown key '{key}'; {f'did you mean {near[0]}? ' if near else ''}valid: {', '.join(valid)}")
        return engine

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.command == "plan" and self.slo is None:
            raise ValueError("command: plan needs a limit in slo, such as slo.tpot_ms.p99=13")
        if self.command == "plan" and (self.outages is not None or self.autoscaling is not None):
            raise ValueError("outages and autoscaling are for command: simulate; a plan sizes a fleet that is up and stays as it is")
        if self.disaggregation is not None and (self.outages is not None or self.autoscaling is not None):
            raise ValueError("disaggregation does not go with outages or autoscaling")
        batched = isinstance(self.workload, BarrierSpec) and self.workload.batching != "as_drawn"
        readers = {f"cluster.router {self.cluster.router}": self.cluster.router in PREDICTIVE, "workload.batching": batched}
        self.policy.check(self.engine.get("scheduling_policy", "fcfs"), readers, foretold=self.predictor is not None)
        endless = isinstance(self.workload, OpenSpec) or self.workload.kind in ("clients", "sessions")
        if self.command == "simulate" and endless and self.run.duration_s is None and self.run.num_requests is None:
            raise ValueError("give run.duration_s or run.num_requests, else the arrivals never end")
        return self

    @model_validator(mode="after")
    def _comparable(self) -> Config:
        if self.command == "compare":
            if self.compare is None:
                raise ValueError("command: compare needs compare.variants and compare.metrics")
            if "gpus" in self.compare.metrics and self.slo is None:
                raise ValueError("the metric gpus needs a limit in slo, such as slo.tpot_ms.p99=13")
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

    def pools(self) -> tuple[Group, ...]:
        """The replicas beside the main ones.

        Raises:
            UserError: nothing was measured for what is asked for.
        """
        model, opt = self.model.shape or self.model.name, self.opt
        groups = []
        for pool in self.cluster.pools:
            drafts = None if opt.drafts is None else opt.drafts.name
            cost = CostModel.load(pool.path(model, self.gpu.name, opt.weights, opt.kv_cache_dtype, self.tensor_parallel_size, drafts))
            if cost.artifact.speculation not in (None, drafts):
                raise UserError(
                    f"cluster.pools: {cost.artifact.gpu} was measured with {cost.artifact.speculation}, opt has {drafts or 'none'}"
                )
            groups.append(pool.group(cost, self.engine_config(cost, pool.engine)))
        return tuple(groups)

    def engine_config(self, cost: CostModel, options: dict[str, Any] | None = None) -> EngineConfig:
        """The engine: the options given (null: those of `engine`), and for the rest what held when `cost` was measured.

        Raises:
            UserError: an option makes no sense.
        """
        memory = cost.artifact.memory
        given = {key: value for key, value in (self.engine if options is None else options).items() if value is not None}
        override = given.pop("num_gpu_blocks_override", None)
        measured = {name: getattr(memory, name) for name in ("block_size", "max_model_len", "max_num_batched_tokens", "max_num_seqs")}
        if isinstance(budget := given.get("max_num_batched_tokens"), int):
            measured["max_num_seqs"] = min(measured["max_num_seqs"], max(budget, 1))  # as `vllm serve` does where it is not told
        share = given.pop("gpu_memory_utilization", memory.gpu_memory_utilization)
        blocks = override or blocks_for(memory, {**measured, **given}, share)
        caching = self.opt.enable_prefix_caching
        from_opt = {} if caching is None else {"enable_prefix_caching": caching}
        # A pool may have been measured without drafts.
        drafts = None if cost.artifact.speculation is None else self.opt.drafts
        merged = {**measured, **from_opt, **given, "num_gpu_blocks": blocks, "speculative": drafts}
        try:
            return EngineConfig.model_validate(merged)
        except ValidationError as error:
            message = one_line(error, merged, "engine")
            raise UserError(message.replace("engine.num_gpu_blocks:", "engine.num_gpu_blocks_override:")) from None

    def split(self, cost: CostModel) -> Disaggregation | None:
        """`disaggregation`, with the size of a block.

        Raises:
            UserError: neither the cost model nor the model's shape tells it.
        """
        spec, memory = self.disaggregation, cost.artifact.memory
        if spec is None or spec.bytes_per_block is not None:
            return spec
        if memory.parts is not None:
            size: float | None = memory.parts.bytes_per_block * cost.artifact.tensor_parallel_size
        else:
            size = bytes_per_block(self.model.config, cost.artifact.kv_cache_dtype, memory.block_size)
        if size is None:
            raise UserError(f"disaggregation.bytes_per_block: not known for {self.model.name}; give it")
        return spec.model_copy(update={"bytes_per_block": size})

    def _with_start(self, spec: Started | None) -> Started | None:
        """With the measured time that an engine takes to start, unless it is given."""
        if spec is None or spec.engine_start_s is not None:
            return spec
        return spec.model_copy(update={"engine_start_s": engine_start_s(self.cost_model_path)})

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
            workload=foretell(workload, self.predictor, self.workload, self.seed, engine.max_model_len),
            policy=self.policy,
            engine=engine,
            cost=cost,
            num_replicas=self.cluster.num_replicas,
            router=self.cluster.router,
            seed=self.seed,
            stride=run.stride,
            horizon_s=run.horizon_s,
            sample_s=run.sample_s,
            acceptance=self.accepted(),
            clients=self.clients,
            others=self.pools(),
            outages=self._with_start(self.outages),
            autoscaling=self._with_start(self.autoscaling),
            disaggregation=self.split(cost),
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
