"""The workload part of a config: who sends, when, and how the senders wait for each other."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from simulator.errors import UserError
from simulator.workload.arrivals import Arrivals
from simulator.workload.base import Spec
from simulator.workload.clients import ClientsSpec
from simulator.workload.distributions import ThinkingShare
from simulator.workload.lengths import Lengths
from simulator.workload.sessions import SessionsSpec
from simulator.workload.shared import SharedPrompts
from simulator.workload.traces import TraceFormat


class OpenSpec(Spec):
    """Requests arrive whatever becomes of the earlier ones."""

    kind: Literal["open"] = "open"
    arrivals: Arrivals
    lengths: Lengths
    priority: int = 0
    shared_prompts: SharedPrompts | None = None
    samples_per_prompt: int = Field(1, ge=1)
    """Best of n: so many requests of one prompt at once; `arrivals` are those of prompts."""

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.arrivals.rate * self.samples_per_prompt


class ClosedSpec(Spec):
    """`num_clients` clients, each sending its next request `think_s` after the answer to its last."""

    kind: Literal["closed"] = "closed"
    num_clients: int = Field(ge=1)
    think_s: float = Field(0.0, ge=0)
    lengths: Lengths
    shared_prompts: SharedPrompts | None = None


class BarrierSpec(Spec):
    """Batches of `batch_size`: the next one is sent when the last request of this one ends (arXiv 2510.18672's client)."""

    kind: Literal["barrier"] = "barrier"
    batch_size: int = Field(ge=1)
    batching: Literal["as_drawn", "by_predicted_length"] = "as_drawn"
    """Whether a client that has all requests at hand puts those together that are expected to be of like length."""
    lengths: Lengths


class ReplaySpec(Spec):
    """A recorded trace, its arrivals as recorded."""

    kind: Literal["replay"] = "replay"
    path: str
    """A folder of this project's format, a file of a public one, or the name of a shipped trace."""
    format: TraceFormat | Literal["auto"] = "auto"
    time_scale: float = Field(1.0, gt=0)
    """Arrival times are multiplied by it: 0.5 doubles the load."""
    thinking: ThinkingShare | None = None
    """Traces do not say how much of an output was thinking; none: the first token is visible."""
    priority: int = 0


WorkloadSpec = Annotated[OpenSpec | ClosedSpec | BarrierSpec | ClientsSpec | ReplaySpec | SessionsSpec, Field(discriminator="kind")]


@cache
def _adapter() -> TypeAdapter[Any]:
    return TypeAdapter(WorkloadSpec)


def validate(spec: Mapping[str, Any], where: str = "workload") -> WorkloadSpec:
    """The spec that a config's plain mapping describes.

    Raises:
        UserError: it makes no sense; the message names the key, under `where`.
    """
    try:
        validated: WorkloadSpec = _adapter().validate_python(spec)
    except ValidationError as error:
        raise UserError(one_line(error, spec, where)) from error
    return validated


def one_line(error: ValidationError, data: Any, where: str) -> str:
    """The first of pydantic's findings as `path.of.key: what is wrong`, with the given value; the others are counted."""
    findings = error.errors(include_url=False)
    paths = [".".join([where, *_keys(found["loc"], data, missing=found["type"] == "missing")]) for found in findings]
    others = len(set(paths)) - 1
    return f"{paths[0]}: {_message(findings[0])}{f' (and {others} more)' if others else ''}"


def _keys(loc: tuple[int | str, ...], data: Any, *, missing: bool) -> list[str]:
    """The path as the user wrote it: pydantic's also holds the tag of every union on the way."""
    keys: list[str] = []
    for depth, step in enumerate(loc):
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            if not (missing and depth == len(loc) - 1):
                continue
        keys.append(str(step))
    return keys


def _message(finding: Any) -> str:
    context = finding.get("ctx", {})
    match finding["type"]:
        case "missing":
            return "is missing"
        case "union_tag_invalid":
            return f"unknown kind '{context['tag']}'; valid: {context['expected_tags']}"
        case "union_tag_not_found":
            return "kind is missing"
        case "value_error":
            return " ".join(str(context["error"]).split())
        case _:
            given = repr(finding["input"])
            return f"{finding['msg'][0].lower()}{finding['msg'][1:]}, not {given if len(given) <= 60 else given[:57] + '…'}"
