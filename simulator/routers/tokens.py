"""Routers that count tokens: a request is worth what it holds, or what it is expected to take."""

from __future__ import annotations

from collections.abc import Sequence as Replicas

from simulator.routers.base import Ask, Load


class LeastTokens:
    """The replica whose unfinished requests have the fewest tokens, prompt and output so far; the first of several."""

    def __init__(self, seed: int) -> None:
        del seed

    def route(self, replicas: Replicas[Load], ask: Ask) -> int:
        del ask
        loads = [replica.context_tokens() for replica in replicas]
        return loads.index(min(loads))


class LengthPredictive:
    """The replica whose unfinished requests are expected to emit the fewest tokens from now on; the first of several.

    Decode steps are what serving reasoning costs, so prompts are not counted.
    """

    def __init__(self, seed: int) -> None:
        del seed

    def route(self, replicas: Replicas[Load], ask: Ask) -> int:
        del ask
        loads = [replica.predicted_tokens() for replica in replicas]
        return loads.index(min(loads))
