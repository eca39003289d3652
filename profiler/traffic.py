"""What a recording sends: one workload or several, drawn before the engine starts, so that mistakes in them cost no start."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from profiler.options import CONF, Part, Recording
from simulator.errors import UserError
from simulator.request import RequestTable
from simulator.workload import OpenLoop, generate, validate

Int64 = NDArray[np.int64]

NO_PREFIX = -1


@dataclass(frozen=True, eq=False)
class Traffic:
    """The requests of one trace, and the tokens of their prompts."""

    name: str
    folder: Path
    """Where the trace goes."""
    workload: dict[str, Any]
    """As given, for `meta.json`."""
    seed: int
    duration_s: float
    """For which requests are sent."""
    requests: RequestTable
    """`prompt_tokens` includes the shared head."""
    prefix: Int64
    """int64[n]: which head a prompt shares; −1: none."""
    prefix_tokens: int
    vocab_size: int

    def prompt(self, row: int) -> list[int]:
        """Token ids of a request's prompt: the head that its group shares, and tokens of its own."""
        group, length = int(self.prefix[row]), int(self.requests.prompt_tokens[row])
        head = [] if group == NO_PREFIX else self._tokens("prefix", group, self.prefix_tokens)
        return head + self._tokens("prompt", row, length - len(head))

    def _tokens(self, kind: str, index: int, length: int) -> list[int]:
        random = np.random.default_rng(np.random.SeedSequence([self.seed, crc32(kind.encode()), index]))
        tokens: list[int] = random.integers(0, self.vocab_size, length).tolist()
        return tokens


def traffic(options: Recording) -> list[Traffic]:
    """Every trace of the recording, in the order in which they are served.

    Raises:
        UserError: a workload makes no sense, or is not one that arrives by itself.
    """
    if not options.workloads:
        return [_drawn(options, None, options.folder)]
    names = [part.name for part in options.workloads]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"workloads: two traces are called {twice[0]}; each is a folder of its own")
    return [_drawn(options, part, options.folder / part.name) for part in options.workloads]


def _drawn(options: Recording, part: Part | None, folder: Path) -> Traffic:
    workload, seed, duration_s = options.workload, options.seed, options.duration_s
    if part is not None:
        workload = _overridden(workload, part)
        seed = options.seed if part.seed is None else part.seed
        duration_s = part.duration_s or duration_s
    name = options.name or f"{options.gpu.name}-{options.model.name}-{options.label}"
    shared = options.shared_prefixes
    longest = min(options.max_model_len or 2**31, options.model.config.get("max_position_embeddings", 2**31))
    drawn = generate(validate(workload), seed, max_model_len=longest - (shared.prefix_tokens if shared else 0), duration_s=duration_s)
    if not isinstance(drawn.loop, OpenLoop):
        raise UserError("workload: a trace is recorded of traffic that arrives by itself; give an open workload")
    requests, prefix = drawn.requests, np.full(len(drawn.requests), NO_PREFIX)
    if shared:
        requests = replace(requests, prompt_tokens=requests.prompt_tokens + shared.prefix_tokens)
        random = np.random.default_rng(np.random.SeedSequence([seed, crc32(b"group")]))
        prefix = random.integers(shared.num_prefixes, size=len(requests))
    return Traffic(
        name=f"{name}-{part.name}" if part else name,
        folder=folder,
        workload=workload,
        seed=seed,
        duration_s=duration_s,
        requests=requests,
        prefix=prefix,
        prefix_tokens=shared.prefix_tokens if shared else 0,
        vocab_size=options.model.config["vocab_size"],
    )


def _overridden(workload: dict[str, Any], part: Part) -> dict[str, Any]:
    """The recording's workload with what the part says otherwise."""
    changed: dict[str, Any] = _named(part.workload) if isinstance(part.workload, str) else _merged(workload, part.workload)
    arrivals = {name: value for name, value in (("rate", part.rate), ("cv", part.cv)) if value is not None}
    if arrivals and "arrivals" not in changed:
        raise UserError(f"workloads: {part.name} has no arrivals whose {' and '.join(arrivals)} could be set")
    return changed | {"arrivals": changed["arrivals"] | arrivals} if arrivals else changed


def _named(name: str) -> dict[str, Any]:
    path = CONF / "workload" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml")))
        raise UserError(f"workloads: no workload {name!r} in conf/workload; known are {known}")
    loaded = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(loaded, dict)
    return {str(key): value for key, value in loaded.items()}


def _merged(base: Any, changes: Any) -> Any:
    """`base` with `changes`, key by key; a mapping of another kind replaces the one that stood there."""
    if not isinstance(base, dict) or not isinstance(changes, dict) or changes.get("kind", base.get("kind")) != base.get("kind"):
        return changes
    return base | {key: _merged(base.get(key), value) for key, value in changes.items()}
