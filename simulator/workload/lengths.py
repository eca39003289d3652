"""How long prompts and outputs are, and how much of an output is thinking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from simulator.workload.base import Float64, Int64, MeanTokens, Spec, stream
from simulator.workload.catalogue import catalogue, instruction_tokens, length_entry, question_tokens
from simulator.workload.distributions import BetaMixture, CatalogueShare, Empirical, ThinkingShare, Tokens, from_catalogue

ENDLESS_TOKENS = 2**40
"""What a looping output would have, were there no limit."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The randomness of n requests, one stream a field: standard normal scores float64[n], and uniforms `loop` and `part`.

    What a request asks is a map of its scores. So the i-th request is as long at every rate, and changing how long thinking
    is does not change prompts.
    """

    prompt: Float64
    output: Float64
    thinking: Float64
    loop: Float64
    part: Float64

    @classmethod
    def draw(cls, num: int, seed: int, name: str = "default") -> Scores:
        """The scores of the first `num` requests of client `name`."""
        return cls(
            prompt=stream(seed, f"{name}/prompt").standard_normal(num),
            output=stream(seed, f"{name}/output").standard_normal(num),
            thinking=stream(seed, f"{name}/thinking").standard_normal(num),
            loop=stream(seed, f"{name}/loop").random(num),
            part=stream(seed, f"{name}/part").random(num),
        )


@dataclass(frozen=True, eq=False)
class LengthTable:
    """int64[n] columns, named as in `RequestTable`."""

    prompt_tokens: Int64
    output_tokens: Int64
    max_tokens: Int64
    visible_token: Int64


class CustomLengths(Spec):
    """Prompts and outputs of any distribution."""

    kind: Literal["custom"] = "custom"
    prompt: Tokens
    output: Tokens
    max_tokens: int = Field(32768, ge=1)
    """The client's limit on the output; an output that reaches it is truncated."""
    log_corr: float = Field(0.0, ge=-0.99, le=0.99)
    """Correlation of the normal scores of prompt and output (a Gaussian copula); for lognormals, of the logarithms."""
    loop_to_cap_rate: float = Field(0.0, ge=0, le=1)
    """Share of outputs that repeat themselves until they are cut off (in thinking, where there is any)."""
    thinking: ThinkingShare | None = None
    """The share of an output that is thinking; none: the first token is visible."""
    think_budget_tokens: int | None = Field(None, ge=0)
    """Thinking is ended after so many tokens; the answer keeps its length."""
    label: str = "custom lengths"

    @model_validator(mode="after")
    def _limits_in_order(self) -> CustomLengths:
        if self.max_tokens < self.output.at_least:
            raise ValueError(f"max_tokens {self.max_tokens} is below output.at_least {self.output.at_least}")
        if self.think_budget_tokens is not None and self.thinking is None:
            raise ValueError(f"think_budget_tokens {self.think_budget_tokens} limits nothing: thinking is null")
        return self

    def sample(self, scores: Scores) -> LengthTable:
        """The lengths at the given scores."""
        num = len(scores.prompt)
        together = self.log_corr * scores.prompt + np.sqrt(1 - self.log_corr**2) * scores.output
        natural = self.output.tokens(together)
        loops = scores.loop < self.loop_to_cap_rate
        if self.thinking is None:
            thinking, answer = np.zeros(num, np.int64), np.where(loops, ENDLESS_TOKENS, natural)
        else:
            within = np.floor(self.thinking.share(scores.thinking) * natural).astype(np.int64)
            thinking, answer = np.where(loops, ENDLESS_TOKENS, within), natural - within
        if self.think_budget_tokens is not None:
            thinking = np.minimum(thinking, self.think_budget_tokens)
        return LengthTable(
            prompt_tokens=self.prompt.tokens(scores.prompt),
            output_tokens=np.minimum(thinking + answer, self.max_tokens),
            max_tokens=np.full(num, self.max_tokens, np.int64),
            visible_token=np.minimum(thinking, self.max_tokens) + 1,
        )

    def describe(self) -> str:
        """The label and what is changed about it."""
        budget = "" if self.think_budget_tokens is None else f", thinking ended at {self.think_budget_tokens:,}"
        return f"{self.label} capped at {self.max_tokens:,}{budget}"


class CatalogueLengths(Spec):
    """Lengths of a model on a data set (or in production), as the shipped catalogue has them; every field overrides it."""

    kind: Literal["catalogue"] = "catalogue"
    name: str
    """`model/dataset`, for example `r1-distill-qwen-7b/math500`."""
    alternative: str | None = None
    """A source that disagrees with the catalogue's first choice, where it has one (`study`, `deer_16k`)."""
    prompt: Tokens | None = None
    max_tokens: int | None = Field(None, ge=1)
    log_corr: float | None = Field(None, ge=-0.99, le=0.99)
    loop_to_cap_rate: Annotated[float, Field(ge=0, le=1)] | Literal["catalogue"] = 0.0
    """`catalogue`: the data set's rate as seen with Qwen3-1.7B. 7B models loop less, 14B and above do not."""
    thinking: ThinkingShare | None = CatalogueShare()
    think_budget_tokens: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _exists(self) -> CatalogueLengths:
        alternatives = length_entry(self.name).get("alternatives", {})
        if self.alternative is not None and self.alternative not in alternatives:
            raise ValueError(f"{self.name} has no alternative '{self.alternative}'; valid: {', '.join(alternatives) or 'none'}")
        if self.think_budget_tokens is not None and self._thinking(length_entry(self.name)) is None:
            raise ValueError(f"think_budget_tokens {self.think_budget_tokens} limits nothing: these outputs have no thinking")
        self.resolve()
        return self

    @property
    def tier(self) -> str:
        """How the figures were obtained (`catalogue.py`); alternatives are solved from published means: D."""
        return "D" if self.alternative else str(length_entry(self.name)["tier"])

    @property
    def source(self) -> str:
        """Where the figures are from; empty where the catalogue does not say."""
        return self.alternative or str(length_entry(self.name).get("src", ""))

    def resolve(self) -> CustomLengths:
        """The same lengths with every parameter written out."""
        entry = length_entry(self.name)
        dataset = self.name.partition("/")[2]
        output = entry["alternatives"][self.alternative] if self.alternative else entry["output"]
        given: dict[str, Any] = {
            "max_tokens": self.max_tokens or entry["output"].get("cap", catalogue()["cap"]),
            "log_corr": catalogue()["log_corr_prompt_output"].get(dataset, 0.0) if self.log_corr is None else self.log_corr,
            "loop_to_cap_rate": self._loop_rate(dataset),
            "think_budget_tokens": self.think_budget_tokens,
        }
        return CustomLengths(
            prompt=self.prompt or _catalogue_prompt(entry, dataset, self.name),
            output=from_catalogue(output),
            thinking=self._thinking(entry),
            label=self._label(),
            **given,
        )

    def _loop_rate(self, dataset: str) -> float:
        if self.loop_to_cap_rate != "catalogue":
            return self.loop_to_cap_rate
        rates = {name: rate for name, rate in catalogue()["loop_to_cap_rate"].items() if name != "note"}
        if dataset not in rates:
            raise ValueError(f"the catalogue has no loop_to_cap_rate of {dataset}; it has {', '.join(rates)}: give a number")
        return float(rates[dataset])

    def _thinking(self, entry: dict[str, Any]) -> ThinkingShare | None:
        if not isinstance(self.thinking, CatalogueShare):
            return self.thinking
        if not entry.get("thinks", True):
            return None
        return BetaMixture(components=entry["reason_share"]["mix_beta"]) if "reason_share" in entry else self.thinking

    def _label(self) -> str:
        return f"{self.name} lengths (tier {self.tier}{', ' + self.source if self.source else ''})"

    def sample(self, scores: Scores) -> LengthTable:
        """The lengths at the given scores."""
        return self.resolve().sample(scores)

    def describe(self) -> str:
        """Name, tier, source and cap."""
        return self.resolve().describe()


def _catalogue_prompt(entry: dict[str, Any], dataset: str, name: str) -> Tokens:
    if "prompt" in entry:
        return from_catalogue(entry["prompt"]).model_copy(update={"at_most": entry["prompt"].get("cap")})
    if not question_tokens(dataset):
        raise ValueError(f"the catalogue has no prompt lengths for {name}: give prompt")
    return Empirical(dataset=dataset, extra_tokens=instruction_tokens(dataset))


class Part(Spec):
    """One data set of a mixture."""

    weight: float = Field(gt=0)
    priority: int = 0
    """Added to that of the workload."""
    lengths: Annotated[CustomLengths | CatalogueLengths, Field(discriminator="kind")]


class MixtureLengths(Spec):
    """Each request comes from one of several data sets, at random in proportion to their weights."""

    kind: Literal["mixture"] = "mixture"
    parts: dict[str, Part] = Field(min_length=1)

    def sample(self, scores: Scores) -> LengthTable:
        """The lengths at the given scores."""
        chosen = self.chosen(scores)
        tables = [part.lengths.sample(scores) for part in self.parts.values()]

        def pick(column: str) -> Int64:
            picked: Int64 = np.stack([getattr(table, column) for table in tables])[chosen, np.arange(len(chosen))]
            return picked

        return LengthTable(pick("prompt_tokens"), pick("output_tokens"), pick("max_tokens"), pick("visible_token"))

    def chosen(self, scores: Scores) -> Int64:
        """int64[n]: each request's part, by its place."""
        weights = np.array([part.weight for part in self.parts.values()])
        return np.searchsorted(np.cumsum(weights / weights.sum())[:-1], scores.part, side="right")

    def describe(self) -> str:
        """The parts and their shares."""
        total = sum(part.weight for part in self.parts.values())
        return " + ".join(f"{part.weight / total:.0%} {part.lengths.describe()}" for part in self.parts.values())


Lengths = Annotated[CustomLengths | CatalogueLengths | MixtureLengths, Field(discriminator="kind")]


def mean_tokens(lengths: Lengths, max_model_len: int | None = None) -> MeanTokens:
    """Mean prompt and output of the requests that an engine of that `max_model_len` serves.

    A Monte Carlo mean over 65,536 requests of a fixed seed: exact to about 0.5 %, in milliseconds. NaN where none is served.
    """
    table = lengths.sample(Scores.draw(65_536, seed=0, name="mean_tokens"))
    prompt, output = table.prompt_tokens, table.output_tokens
    if max_model_len is not None:
        prompt, output = prompt[prompt < max_model_len], output[prompt < max_model_len]
        output = np.minimum(output, max_model_len - prompt)
    return MeanTokens(float(prompt.mean()), float(output.mean())) if len(prompt) else MeanTokens(np.nan, np.nan)
