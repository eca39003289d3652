"""How many drafts are accepted, as a configuration says it: published figures by name, or its own."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from pydantic import Field, model_validator

from simulator.engine import SpeculativeConfig
from simulator.errors import UserError
from simulator.speculation import Acceptance
from simulator.workload.base import Spec
from simulator.workload.catalogue import DATA


@cache
def published() -> dict[str, Any]:
    """`workload/data/acceptance.json`: figures with their sources, and those that are no default with the reason."""
    loaded: dict[str, Any] = json.loads((DATA / "acceptance.json").read_text(encoding="utf-8"))
    return loaded


class AcceptanceSpec(Spec):
    """The key `acceptance` of a configuration: one of `name`, `rates` and `length`, or none for the method's default."""

    name: str | None = None
    """Of a published figure, such as `eagle3/math`."""
    rates: list[float] | None = None
    """Probability that the first 1, 2, … drafts are accepted: vLLM's `synthetic_acceptance_rates`."""
    length: float | None = None
    """Mean tokens of a verify step: vLLM's `synthetic_acceptance_length`."""
    proposed: float | None = Field(None, gt=0, le=1)
    """Share of the steps for which there are drafts (n-gram)."""
    correlation: float = Field(0.0, ge=0, lt=1)
    """Of the steps of one request."""
    growth: list[tuple[int, float]] = Field([])
    """(output token, factor on the rates)."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _one_of_them(self) -> AcceptanceSpec:
        if sum(value is not None for value in (self.name, self.rates, self.length)) > 1:
            raise ValueError("give one of name, rates and length")
        return self

    def resolve(self, speculative: SpeculativeConfig) -> Acceptance:
        """The acceptance model for these drafts.

        Raises:
            UserError: nothing published is fit to be used, or the figures make no sense.
        """
        drafts = speculative.num_speculative_tokens
        if self.rates is not None:
            if len(self.rates) != drafts:
                raise UserError(f"acceptance.rates has {len(self.rates)} entries; num_speculative_tokens is {drafts}")
            base, origin = Acceptance(tuple(self.rates)), "as configured"
        elif self.length is not None:
            base, origin = Acceptance.of_length(self.length, drafts), "as configured"
        else:
            base, origin = _published(self.name, speculative)
        proposed = base.proposed if self.proposed is None else self.proposed
        return Acceptance(base.rates, proposed, self.correlation, tuple(self.growth), origin)


def _published(name: str | None, speculative: SpeculativeConfig) -> tuple[Acceptance, str]:
    """The figures, and whose they are."""
    method, drafts = speculative.method, speculative.num_speculative_tokens
    entries = published()["published"]
    valid = ", ".join(key for key, entry in entries.items() if entry["method"] == method and "refused" not in entry)
    others = f"valid for {method}: {valid or 'none'}, or your own acceptance.rates or acceptance.length"
    if name is None:
        name = published()["defaults"][method]
    if name is None:
        raise UserError(f"acceptance: nothing published is a default for {method}; {others}")
    if name not in entries or entries[name]["method"] != method:
        raise UserError(f"acceptance '{name}': no such figure; {others}")
    entry = entries[name]
    if "refused" in entry:
        raise UserError(f"acceptance '{name}': {entry['refused']}; {others}")
    origin = f"{name}: {entry['text']}, {entry['model']}"
    if "rates" not in entry:
        return _of_mean(name, entry["accepted"], drafts), origin
    if drafts > len(entry["rates"]):
        raise UserError(f"acceptance '{name}': known for {len(entry['rates'])} drafts, num_speculative_tokens is {drafts}; {others}")
    whole = sum(entry["rates"])
    return Acceptance(tuple(entry["rates"][:drafts]), (entry["length"] - 1) / whole if "length" in entry else 1.0), origin


def _of_mean(name: str, accepted: float, drafts: int) -> Acceptance:
    if accepted > drafts:
        raise UserError(f"acceptance '{name}': {accepted} drafts of a step on average are more than num_speculative_tokens, {drafts}")
    return Acceptance.steady(1 + accepted, drafts)
