"""How many drafts a verify step accepts: rates by position, alike within a request, drifting along the output.

A verify step of K drafts emits the accepted ones and one token more. `rates[i]` is the probability that the first i + 1 drafts are
all accepted (vLLM 0.26 `config/speculative.py`, `synthetic_acceptance_rates`), so with one uniform number a step the accepted drafts
are the rates above it: the same law as a test of one draft after the other.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from simulator.errors import UserError

Float64 = NDArray[np.float64]

STREAM = crc32(b"acceptance")
PIECE = 512
"""Positions of an output that are drawn at once."""
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(64)
"""Of the quadrature over the requests' standard normal scores."""


@dataclass(frozen=True)
class Acceptance:
    """What a drafter's proposals are worth on some text.

    Example:
        >>> Acceptance((0.73, 0.52, 0.35)).mean_emitted
        2.6
    """

    rates: tuple[float, ...]
    """Probability that the first 1, 2, …, K drafts are accepted, where the drafter proposed."""
    proposed: float = 1.0
    """Share of the steps for which it proposes anything: below 1 for n-gram, which has to find a match first."""
    correlation: float = 0.0
    """Within a request: correlation of the normal scores behind two steps' numbers. Rates and their mean stay what they are."""
    growth: tuple[tuple[int, float], ...] = ()
    """(output token, factor on the rates): straight lines between, flat beyond."""
    origin: str = field(default="", compare=False)
    """Whose figures these are, for reports."""

    def __post_init__(self) -> None:
        if not self.rates or any(not 0 <= rate <= 1 for rate in self.rates) or any(b > a for a, b in pairwise(self.rates)):
            raise UserError(f"acceptance.rates is {list(self.rates)}; they are probabilities of 1, 2, … drafts and do not increase")
        if not 0 < self.proposed <= 1:
            raise UserError(f"acceptance.proposed is {self.proposed}; it is a share above 0, at most 1")
        if not 0 <= self.correlation < 1:
            raise UserError(f"acceptance.correlation is {self.correlation}; it is at least 0 and below 1")
        tokens = [token for token, _ in self.growth]
        if tokens != sorted(set(tokens)) or any(factor < 0 for _, factor in self.growth):
            raise UserError("acceptance.growth: write [token, factor] pairs in increasing order of tokens, factors of 0 or more")

    @classmethod
    def of_length(cls, length: float, num_speculative_tokens: int) -> Acceptance:
        """As vLLM reads `synthetic_acceptance_length`: that many tokens a step on average, with the least variance.

        Raises:
            UserError: such a length cannot be.
        """
        _check_length(length, num_speculative_tokens)
        whole = int(length - 1)
        rates = [1.0] * whole + [length - 1 - whole] + [0.0] * num_speculative_tokens
        return cls(tuple(rates[:num_speculative_tokens]))

    @classmethod
    def steady(cls, length: float, num_speculative_tokens: int) -> Acceptance:
        """The same mean with one probability for every draft, given those before it: what a published mean says at best.

        Raises:
            UserError: such a length cannot be.
        """
        _check_length(length, num_speculative_tokens)
        low, high = 0.0, 1.0
        powers = np.arange(1, num_speculative_tokens + 1)
        for _ in range(60):
            rate = (low + high) / 2
            low, high = (rate, high) if float((rate**powers).sum()) < length - 1 else (low, rate)
        return cls(tuple(float(rate) for rate in high**powers))

    @property
    def conditional(self) -> tuple[float, ...]:
        """Probability of each draft, given that those before it were accepted (vLLM 0.26 `v1/spec_decode/utils.py`)."""
        return tuple(b / a if a > 0 else 0.0 for a, b in pairwise((1.0, *self.rates)))

    @property
    def mean_emitted(self) -> float:
        """Tokens of a verify step, the mean over requests' steps; of the beginning of an output where `growth` is given."""
        return 1 + self.proposed * float(self._rates_at(np.zeros(1, np.int64)).sum())

    @cached_property
    def tokens_per_step(self) -> float:
        """Tokens / steps of a whole run of long outputs: what engines report as the mean acceptance length.

        Below `mean_emitted` where requests differ, since those that accept less take more steps (a harmonic mean).
        """
        return float(1 / (WEIGHTS @ (1 / self._request_means()) / WEIGHTS.sum()))

    @property
    def request_std(self) -> float:
        """Standard deviation between requests of their mean tokens a step."""
        means, weights = self._request_means(), WEIGHTS / WEIGHTS.sum()
        return float(np.sqrt(max(weights @ means**2 - (weights @ means) ** 2, 0.0)))

    def in_words(self) -> str:
        """What is assumed, for reports."""
        rates = ", ".join(f"{rate:.0%}" for rate in self.rates)
        often = "" if self.proposed == 1 else f" in the {self.proposed:.0%} of the steps that have drafts"
        origin = f" ({self.origin})" if self.origin else ""
        return f"{self.tokens_per_step:.2f} tokens a step; the first 1 to {len(self.rates)} are accepted with {rates}{often}{origin}"

    def _request_means(self) -> Float64:
        """float64[nodes]: tokens a step of requests with the scores `NODES`."""
        from scipy.special import ndtr, ndtri

        scores = ndtri(self._rates_at(np.zeros(1, np.int64))[0])
        rates = ndtr((scores + np.sqrt(self.correlation) * NODES[:, None]) / np.sqrt(1 - self.correlation))
        means: Float64 = 1 + self.proposed * rates.sum(axis=1)
        return means

    def _rates_at(self, tokens: NDArray[np.int64]) -> Float64:
        """float64[m, K]: the rates after so many tokens of output."""
        rates = np.broadcast_to(np.array(self.rates), (len(tokens), len(self.rates)))
        if not self.growth:
            return rates
        knots, factors = zip(*self.growth, strict=True)
        grown: Float64 = np.minimum(rates * np.interp(tokens, knots, factors)[:, None], 1.0)
        return grown

    def draw(self, rng: np.random.Generator, score: float, first_token: int) -> tuple[list[int], list[bool]]:
        """(drafts accepted, whether any were proposed) of steps that begin after `first_token` … tokens of output, `PIECE` each."""
        uniform, luck = rng.random((2, PIECE))
        if self.correlation:
            from scipy.special import ndtr, ndtri

            uniform = ndtr(np.sqrt(1 - self.correlation) * ndtri(uniform) - np.sqrt(self.correlation) * score)
        rates = self._rates_at(np.arange(first_token, first_token + PIECE))
        return (uniform[:, None] < rates).sum(axis=1).tolist(), (luck < self.proposed).tolist()


def _check_length(length: float, num_speculative_tokens: int) -> None:
    if not 1 <= length <= num_speculative_tokens + 1:
        raise UserError(
            f"acceptance.length is {length}; with {num_speculative_tokens} drafts a step emits 1 to {num_speculative_tokens + 1} tokens"
        )


class Drafts:
    """The drafts of one request: a stream of its own, by the number of tokens emitted before the step.

    So nothing depends on which step of the engine it is, on who else runs, or on a preemption in between.
    """

    __slots__ = ("_acceptance", "_accepted", "_is_walked", "_path", "_proposed", "_rng", "_score")

    def __init__(self, acceptance: Acceptance, seed: int, row: int) -> None:
        self._acceptance = acceptance
        self._rng = np.random.default_rng(np.random.SeedSequence([seed, STREAM, row]))
        self._score = float(self._rng.standard_normal())
        self._accepted: list[int] = []
        self._proposed: list[bool] = []
        self._path: list[int] = []
        """Where steps with all drafts lead: most stretches begin where another was cut, so it is walked once."""
        self._is_walked = False
        """Whether the path ends, before a position for which nothing is proposed."""

    def accepted(self, token: int) -> int:
        """Drafts that a step after `token` tokens of output would accept if it had all of them."""
        self._reach(token)
        return self._accepted[token]

    def proposed(self, token: int) -> bool:
        """Whether the drafter proposes anything after `token` tokens of output."""
        self._reach(token)
        return self._proposed[token]

    def walk(self, token: int, last: int, limit: int) -> list[int]:
        """Tokens of output after each of at most `limit` steps with all drafts, from `token` on, as long as they are `last` at most.

        Ends before a position for which nothing is proposed.
        """
        path = self._path
        while path and path[-1] < token and not self._is_walked:
            self._extend(path)
        at = bisect_left(path, token)
        if at == len(path) or path[at] != token:
            # A step with fewer drafts has led elsewhere.
            self._reach(token)
            path[:], self._is_walked, at = [token], False, 0
        end = at + 1 + limit
        while len(path) < end and path[-1] <= last and not self._is_walked:
            self._extend(path)
        return path[at + 1 : min(end, bisect_right(path, last, at + 1))]

    def _extend(self, path: list[int]) -> None:
        """Takes the path one step further, or finds that it ends."""
        token = path[-1] + 1 + self._accepted[path[-1]]
        self._reach(token)
        if self._proposed[token]:
            path.append(token)
        else:
            self._is_walked = True

    def _reach(self, token: int) -> None:
        while token >= len(self._accepted):
            accepted, proposed = self._acceptance.draw(self._rng, self._score, len(self._accepted))
            self._accepted += accepted
            self._proposed += proposed


@dataclass(frozen=True)
class Drafting:
    """The drafts of all requests of a run."""

    acceptance: Acceptance
    seed: int

    def of(self, row: int) -> Drafts:
        """Those of the request in that row."""
        return Drafts(self.acceptance, self.seed, row)
