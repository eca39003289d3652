"""Routers: which replica gets a request. None may know how long the answer will be."""

from __future__ import annotations

from collections.abc import Callable

from simulator.errors import UserError
from simulator.routers.base import Ask, Informed, Load, Router
from simulator.routers.prefix import PrefixAffine
from simulator.routers.simple import LeastRequests, PowerOfTwo, Random, RoundRobin
from simulator.routers.tokens import LeastTokens, LengthPredictive
from simulator.routers.vllm import VllmDataParallel

__all__ = ["BY_COUNT", "PREDICTIVE", "ROUTERS", "TOKEN_COUNTING", "Ask", "Informed", "Load", "Router", "make_router"]

ROUTERS: dict[str, Callable[[int], Router]] = {
    "least_requests": LeastRequests,
    "round_robin": RoundRobin,
    "random": Random,
    "power_of_two": PowerOfTwo,
    "least_tokens": LeastTokens,
    "length_predictive": LengthPredictive,
    "prefix_affine": PrefixAffine,
    "vllm": VllmDataParallel,
}
"""By name; each is made from the run's seed."""

BY_COUNT = frozenset({"least_requests", "round_robin", "random", "power_of_two"})
"""Those that see nothing but `outstanding`: they can stand in front of real engines, too."""

TOKEN_COUNTING = frozenset({"least_tokens", "length_predictive"})
"""Those that look at how far each request has come."""

PREDICTIVE = frozenset({"length_predictive"})
"""Those that read predicted lengths."""


def make_router(name: str, seed: int) -> Router:
    """The router of that name.

    Raises:
        UserError: there is none.
    """
    if name not in ROUTERS:
        raise UserError(f"router {name!r} is not known; choose one of {', '.join(sorted(ROUTERS))}")
    return ROUTERS[name](seed)
