"""Distributions of lengths and shares, each as a map from standard normal scores.

Mapping scores, rather than drawing values, is what lets one pair of scores couple two of them (a Gaussian copula), and what
keeps the i-th request the same when another one's distribution changes.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from simulator.workload.base import Float64, Int64, Spec
from simulator.workload.catalogue import catalogue, prompt_counts, question_tokens

GRID_POINTS = 4001
LARGEST_LOG = 60.0
"""Beyond any context, and far from what overflows."""


def _from_grid(score: Float64, values: Float64, cdf: Float64) -> Float64:
    """Quantiles by interpolation between normal scores: a mixture has no closed inverse; its tails stay smooth this way."""
    from scipy.special import ndtri

    scores: Float64 = ndtri(cdf)
    inside = np.isfinite(scores)
    return np.interp(score, scores[inside], values[inside])


def _positive_weights(components: tuple[tuple[float, ...], ...]) -> None:
    for component in components:
        if component[0] <= 0:
            raise ValueError(f"weight {component[0]:g} must be positive")


class TokenDistribution(Spec):
    """A distribution of token counts, kept between `at_least` and `at_most`."""

    at_least: int = Field(1, ge=1)
    at_most: int | None = None

    @model_validator(mode="after")
    def _bounds_in_order(self) -> TokenDistribution:
        if self.at_most is not None and self.at_most < self.at_least:
            raise ValueError(f"at_most {self.at_most} is below at_least {self.at_least}")
        return self

    def tokens(self, score: Float64) -> Int64:
        """int64[n] token counts at the standard normal scores float64[n]."""
        upper = np.iinfo(np.int32).max if self.at_most is None else self.at_most
        clipped = np.clip(np.rint(self._quantile(score)), self.at_least, upper)
        return clipped.astype(np.int64)

    @abstractmethod
    def _quantile(self, score: Float64) -> Float64: ...


class Constant(TokenDistribution):
    """Every request the same."""

    kind: Literal["constant"] = "constant"
    value: int = Field(ge=1)

    def _quantile(self, score: Float64) -> Float64:
        return np.full(len(score), float(self.value))


class LogNormal(TokenDistribution):
    """exp(mu + sigma·score)."""

    kind: Literal["lognormal"] = "lognormal"
    mu: float = Field(ge=0, le=LARGEST_LOG)
    sigma: float = Field(ge=0, le=5)

    def _quantile(self, score: Float64) -> Float64:
        return np.exp(self.mu + self.sigma * score)


class LogNormalMixture(TokenDistribution):
    """A mixture of lognormals; `components` are (weight, mu, sigma), the weights in any unit."""

    kind: Literal["lognormal_mixture"] = "lognormal_mixture"
    components: tuple[tuple[float, float, float], ...] = Field(min_length=1)

    @field_validator("components")
    @classmethod
    def _meaningful(cls, components: tuple[tuple[float, float, float], ...]) -> tuple[tuple[float, float, float], ...]:
        _positive_weights(components)
        for _, mu, sigma in components:
            if not 0 <= mu <= LARGEST_LOG:
                raise ValueError(f"mu {mu:g} must lie between 0 and {LARGEST_LOG:g}")
            if not 0 < sigma <= 5:
                raise ValueError(f"sigma {sigma:g} must lie between 0 and 5, and not be 0")
        return components

    def _quantile(self, score: Float64) -> Float64:
        from scipy.special import ndtr

        weight, mu, sigma = np.array(self.components).T
        log_tokens = np.linspace((mu - 6 * sigma).min(), (mu + 6 * sigma).max(), GRID_POINTS)
        cdf = ndtr((log_tokens[:, None] - mu) / sigma) @ (weight / weight.sum())
        return np.exp(_from_grid(score, log_tokens, cdf))


class Weibull(TokenDistribution):
    """scale·(−ln U)^(1/shape)."""

    kind: Literal["weibull"] = "weibull"
    shape: float = Field(ge=0.2)
    scale: float = Field(gt=0)

    def _quantile(self, score: Float64) -> Float64:
        from scipy.special import log_ndtr

        exceeded: Float64 = -log_ndtr(-score)
        quantile: Float64 = self.scale * exceeded ** (1 / self.shape)
        return quantile


class Empirical(TokenDistribution):
    """Observed counts, each equally likely: a list of `values`, or the questions of a shipped `dataset`.

    `extra_tokens` come on top of each (an instruction, a chat template).
    """

    kind: Literal["empirical"] = "empirical"
    values: tuple[Annotated[int, Field(ge=1)], ...] = ()
    dataset: str | None = None
    extra_tokens: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _one_source(self) -> Empirical:
        if bool(self.values) == (self.dataset is not None):
            raise ValueError("give either values or dataset")
        if self.dataset is not None and not question_tokens(self.dataset):
            shipped = [name for name, counts in prompt_counts().items() if isinstance(counts, list)]
            raise ValueError(f"no question lengths of dataset '{self.dataset}' are shipped; valid: {', '.join(shipped)}")
        return self

    def _quantile(self, score: Float64) -> Float64:
        from scipy.special import ndtr

        ordered = np.sort(np.array(self.values or question_tokens(self.dataset or ""), np.float64))
        rank = np.minimum((ndtr(score) * len(ordered)).astype(np.int64), len(ordered) - 1)
        quantile: Float64 = ordered[rank] + self.extra_tokens
        return quantile


Tokens = Annotated[Constant | LogNormal | LogNormalMixture | Weibull | Empirical, Field(discriminator="kind")]


class ConstantShare(Spec):
    """The same share of every output is thinking."""

    kind: Literal["constant"] = "constant"
    value: float = Field(ge=0, lt=1)

    def share(self, score: Float64) -> Float64:
        """float64[n] in [0, 1)."""
        return np.full(len(score), self.value)


class BetaMixture(Spec):
    """A mixture of betas; `components` are (weight, a, b), the weights in any unit."""

    kind: Literal["beta_mixture"] = "beta_mixture"
    components: tuple[tuple[float, float, float], ...] = Field(min_length=1)

    @field_validator("components")
    @classmethod
    def _meaningful(cls, components: tuple[tuple[float, float, float], ...]) -> tuple[tuple[float, float, float], ...]:
        _positive_weights(components)
        for _, a, b in components:
            if min(a, b) <= 0:
                raise ValueError(f"the parameters ({a:g}, {b:g}) of a beta must be positive")
        return components

    def share(self, score: Float64) -> Float64:
        """float64[n] in [0, 1)."""
        from scipy.special import betainc

        weight, a, b = np.array(self.components).T
        shares = np.linspace(0, 1, GRID_POINTS)[1:-1]
        cdf = betainc(a, b, shares[:, None]) @ (weight / weight.sum())
        return _from_grid(score, shares, cdf)


class CatalogueShare(Spec):
    """The catalogue's thinking share: production R1's own (tier A), tier D for every other model."""

    kind: Literal["catalogue"] = "catalogue"

    def share(self, score: Float64) -> Float64:
        """float64[n] in [0, 1)."""
        return BetaMixture(components=catalogue()["reason_share_default"]["mix_beta"]).share(score)


ThinkingShare = Annotated[ConstantShare | BetaMixture | CatalogueShare, Field(discriminator="kind")]


def from_catalogue(entry: dict[str, object]) -> LogNormal | LogNormalMixture | Weibull:
    """A catalogue entry's distribution: `ln` [mu, sigma], `mix_ln` [[weight, mu, sigma], …] or `weibull` [shape, scale]."""
    match entry:
        case {"ln": [float() | int() as mu, float() | int() as sigma]}:
            return LogNormal(mu=mu, sigma=sigma)
        case {"mix_ln": list(components)}:
            return LogNormalMixture(components=tuple(components))
        case {"weibull": [float() | int() as shape, float() | int() as scale]}:
            return Weibull(shape=shape, scale=scale)
        case _:
            raise ValueError(f"the catalogue has a distribution of no known family: {', '.join(entry)}")
