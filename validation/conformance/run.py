"""Takes cases through both schedulers, counts, and tells the first difference."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple, cast, get_args

from simulator.errors import UserError
from validation.conformance.cases import Case, Version, random_case
from validation.conformance.decisions import Decision, simulated


class Outcome(NamedTuple):
    """One case, driven through both."""

    seed: int
    case: Case
    decisions: list[Decision]
    """vLLM's."""
    kinds: Counter[str]
    difference: str | None
    """Where the simulator first decides otherwise."""


def exact_version() -> str:
    """Of the vLLM on the path.

    Raises:
        UserError: there is none.
    """
    # It tells at length what a CPU lacks, and warns of budgets larger than they need be, as many here are.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        import vllm
    except ImportError as error:
        raise UserError(f"vLLM cannot be imported ({error}): run this where it is installed") from None
    logging.getLogger("vllm").setLevel(logging.ERROR)
    return str(vllm.__version__)


def installed() -> Version:
    """The version of vLLM on the path, as far as rules depend on it.

    Raises:
        UserError: there is none, or none whose rules are known.
    """
    version = exact_version()
    for known in get_args(Version):
        if version.startswith(f"{known}."):
            return cast(Version, known)
    raise UserError(f"vLLM {version}: expected one of {', '.join(get_args(Version))}")


def outcomes(version: Version, first_seed: int, make: Callable[[int, Version], Case] = random_case) -> Iterator[Outcome]:
    """The cases of all seeds from `first_seed` on, on the vLLM that is installed."""
    from validation.conformance.real import Driver

    seed = first_seed
    while True:
        case = make(seed, version)
        driver = Driver(case, use_v2_model_runner=seed % 2 == 0).run()
        yield Outcome(seed, case, driver.decisions, driver.kinds.counts, difference(simulated(case), driver.decisions))
        seed += 1


def difference(ours: list[Decision], theirs: list[Decision]) -> str | None:
    """The first step in which two runs differ and what differs, or None."""
    for step, (our, their) in enumerate(zip(ours, theirs, strict=False)):
        if our != their:
            names = (name for name in Decision._fields if getattr(our, name) != getattr(their, name))
            parts = (f"{name} {getattr(our, name)}, vLLM {getattr(their, name)}" for name in names)
            return f"step {step}: " + "; ".join(parts)
    if len(ours) != len(theirs):
        return f"{len(ours)} steps, vLLM {len(theirs)}"
    return None
