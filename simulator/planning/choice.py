"""`choose(path)`: one plan an optimization, and which of them needs the fewest GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path

from simulator.artifacts.accuracy import change, is_plain, refusal
from simulator.artifacts.models import measured
from simulator.compose import merged
from simulator.config import Config, load
from simulator.errors import NotMeasuredError, UserError
from simulator.plan import Plan, plan


@dataclass(frozen=True, eq=False)
class Option:
    """One optimization and what it needs."""

    name: str
    overrides: tuple[str, ...]
    """Of the configuration."""
    config: Config | None
    plan: Plan | None
    """None: it was not weighed."""
    reason: str = ""
    """Why not."""

    @property
    def gpus(self) -> int | None:
        """GPUs; None: no number will do, or it was not weighed."""
        return None if self.plan is None else self.plan.gpus

    @property
    def accuracy_points(self) -> float:
        """Published change of accuracy; unknown is worse than any that is known."""
        if self.config is None:
            return -inf
        found = change(self.config.model.name, self.config.opt.weights, self.config.opt.kv_cache_dtype)
        return 0.0 if is_plain(self.config) else -inf if found is None else found.points


@dataclass(frozen=True, eq=False)
class Choice:
    """All optimizations weighed, in the order given."""

    config: Config
    options: list[Option]

    @property
    def best(self) -> Option | None:
        """The one with the fewest GPUs; of several the plainest model, the best accuracy, the most headroom; None: none will do."""
        feasible = [option for option in self.options if option.gpus is not None]
        return min(feasible, key=_rank, default=None)

    @property
    def plain(self) -> Option | None:
        """The model as published, if it was weighed."""
        return next((option for option in self.options if option.plan and option.config and is_plain(option.config)), None)


def _rank(option: Option) -> tuple[int, bool, float, float]:
    assert option.gpus is not None
    assert option.config is not None
    assert option.plan is not None
    headroom = option.plan.chosen.binding.headroom if option.plan.chosen else 0.0
    return option.gpus, not is_plain(option.config), -option.accuracy_points, -headroom


def choose(path: str | Path, overrides: list[str] | None = None) -> Choice:
    """Plans the configuration in the file `path` with each optimization of its `plan.opts`; all meet the same traffic.

    Raises:
        UserError: a configuration makes no sense. That an optimization was not measured, or is refused, is an answer.
    """
    overrides = overrides or []
    config = load(path, overrides)
    return Choice(config, [_option(path, overrides, name, changes) for name, changes in candidates(config).items()])


def candidates(config: Config) -> dict[str, list[str]]:
    """Overrides by name of the optimizations that `plan.opts` asks for; `all`: each that was measured for GPU, model and TP."""
    opts = config.plan.opts
    if opts is None:
        return {}
    if isinstance(opts, dict):
        return opts
    if opts != "all":
        return {name: [f"opt={name}"] for name in opts}
    found = {}
    for weights, kv_cache_dtype, speculation in measured(
        config.gpu.name, config.model.shape or config.model.name, config.tensor_parallel_size
    ):
        method, _, drafts = speculation.partition("-k")
        parts = [weights, f"kv_{kv_cache_dtype}", speculation]
        name = "+".join(part for part in parts if part not in ("bf16", "kv_auto", "")) or "none"
        group = method or ("none" if weights == "bf16" else weights)
        found[name] = [f"opt={group}"]
        if kv_cache_dtype != "auto":
            found[name].append(f"opt.kv_cache_dtype={kv_cache_dtype}")
        if method:
            found[name] += [f"opt.weights={weights}", f"opt.speculative.num_speculative_tokens={drafts}"]
    # The model as published comes first.
    return {name: found[name] for name in sorted(found, key=lambda name: (name != "none", name))}


def _option(path: str | Path, overrides: list[str], name: str, changes: list[str]) -> Option:
    try:
        config = load(path, merged(overrides, changes))
        config.load_cost()
    except NotMeasuredError as error:
        return Option(name, tuple(changes), None, None, str(error))
    except UserError as error:
        raise UserError(f"plan.opts: {name}: {error}") from None
    reason = refusal(config) or _unknown_acceptance(config)
    return Option(name, tuple(changes), config, None if reason else plan(config), reason)


def _unknown_acceptance(config: Config) -> str:
    """Why drafts cannot be weighed: what they are worth is neither published nor given. Empty: it is, or there are none."""
    try:
        config.accepted()
    except UserError as error:
        return str(error)
    return ""
