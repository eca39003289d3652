"""What a router sees, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence as Replicas
from typing import NamedTuple, Protocol, runtime_checkable
from zlib import crc32

import numpy as np

from simulator.prefix.content import Content
from simulator.step.sequence import Sequence


class Ask(NamedTuple):
    """What is known of a request when it is sent."""

    row: int
    """Its row in the table of requests."""
    prompt_tokens: int
    predicted_tokens: int
    """Output tokens that the predictor expects; the client's limit where there is no predictor."""
    content: Content | None = None
    """What the prompt begins with; None: with nothing that another one does."""

    @classmethod
    def about(cls, sequence: Sequence) -> Ask:
        """What is known of this request."""
        return cls(sequence.row, sequence.prompt_tokens, sequence.predicted_tokens, sequence.content)


class Load(Protocol):
    """What a router may see of a replica, as it is when asked; nothing of it depends on tokens that are still to come."""

    index: int
    """Its name among the replicas."""
    outstanding: int
    """Requests routed there and not finished."""

    def context_tokens(self) -> int:
        """Prompt and output tokens so far of the requests routed there and not finished."""

    def predicted_tokens(self) -> int:
        """Output tokens that those requests are still expected to emit, by the predictor."""

    def request_counts(self) -> tuple[int, int]:
        """(waiting, running) as the engine itself counts them: requests on their way are in neither."""


class Router(Protocol):
    """Chooses a replica for a request; returns its place in the list."""

    def route(self, replicas: Replicas[Load], ask: Ask) -> int: ...


@runtime_checkable
class Informed(Protocol):
    """A router that does not look at replicas when it chooses: it goes by what they told it last."""

    every_ns: int
    """How often they are asked."""

    def learn(self, replicas: Replicas[Load]) -> None:
        """What they tell it now."""


class Draws:
    """Uniform numbers in [0, 1), `width` of them a request: by its row, whatever the order of the requests."""

    ROWS_AT_ONCE = 4096

    def __init__(self, seed: int, name: str, width: int) -> None:
        self._rng = np.random.default_rng(np.random.SeedSequence([seed, crc32(name.encode())]))
        self._width = width
        self._rows: list[list[float]] = []

    def __getitem__(self, row: int) -> list[float]:
        while row >= len(self._rows):
            self._rows += self._rng.random((self.ROWS_AT_ONCE, self._width)).tolist()
        return self._rows[row]
