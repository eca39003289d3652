"""How the engine of a measured trace speculated, and how many drafts it accepted."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from simulator.engine import SpeculativeConfig
from simulator.errors import UserError
from simulator.speculation import Acceptance


class SpeculativeMeta(BaseModel):
    """The part of `meta.json`'s `speculative` (vLLM's own option names) that a replay needs."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    method: str
    num_speculative_tokens: int
    acceptance_rates: tuple[float, ...] | None = None
    """As seen: share of the drafting steps in which the first 1, 2, … drafts were accepted."""
    proposed: float = 1.0
    """As seen: share of the verify steps with drafts."""
    synthetic_acceptance_rates: tuple[float, ...] | None = None
    synthetic_acceptance_length: float | None = None


def read_speculative(speculative: dict[str, Any], where: str) -> tuple[SpeculativeConfig, Acceptance]:
    """The engine's option and the acceptance: what was seen goes before what was asked for.

    Args:
        speculative: of `meta.json`.
        where: the file, for messages.

    Raises:
        UserError: it is not told, or makes no sense.
    """
    try:
        meta = SpeculativeMeta.model_validate(speculative)
        config = SpeculativeConfig.model_validate({"method": meta.method, "num_speculative_tokens": meta.num_speculative_tokens})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{where}: speculative.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    rates = meta.acceptance_rates or meta.synthetic_acceptance_rates
    if rates is not None:
        return config, Acceptance(rates, meta.proposed)
    if meta.synthetic_acceptance_length is None:
        raise UserError(f"{where}: speculative has none of acceptance_rates, synthetic_acceptance_rates and synthetic_acceptance_length")
    return config, Acceptance.of_length(meta.synthetic_acceptance_length, meta.num_speculative_tokens)
