"""What every workload spec has in common: it is frozen, and refuses what it does not know."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

NS_PER_S = 1_000_000_000


class Spec(BaseModel):
    """A frozen part of a workload's description."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for key in data:
                if key not in cls.model_fields:
                    raise ValueError(f"unknown key '{key}'; valid: {', '.join(cls.model_fields)}")
        return data


class MeanTokens(NamedTuple):
    """Mean lengths of a request that is served."""

    prompt: float
    output: float


def stream(seed: int, name: str) -> np.random.Generator:
    """The random stream `name`: the same for the same seed, whatever the other streams are used for."""
    return np.random.default_rng(np.random.SeedSequence([seed, crc32(name.encode())]))


def suggest(name: str, valid: list[str]) -> str:
    """The valid names to print beside a wrong one: those like it, else all of them."""
    near = get_close_matches(name, valid, n=4, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"valid: {', '.join(valid)}"
