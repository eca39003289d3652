"""What clients ask, as columns: one row a request."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from simulator.errors import UserError
from simulator.prefix.content import PromptContent

Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RequestTable:
    """Requests in the order in which their clients send them (rows sorted by `arrival_ns`).

    Shapes: every column has length n. A closed loop ignores `arrival_ns`: its clients decide when to send.
    Only the engine's own bookkeeping reads `output_tokens` and `visible_token`: no scheduler, router or admission rule may.
    """

    arrival_ns: Int64
    """When the client sends the request, nanoseconds from the start of the run."""
    prompt_tokens: Int64
    """At least 1."""
    output_tokens: Int64
    """Tokens that the model emits, the end-of-sequence token included; at least 1, at most `max_tokens`."""
    max_tokens: Int64
    """The client's limit. An output that reaches it ends there (`truncated`), a shorter one ends by EOS."""
    visible_token: Int64
    """1-based index of the first token after the thinking; above `output_tokens` where the output ends while thinking."""
    client: Int64
    """Index into `client_names`."""
    priority: Int64
    """vLLM's priority: the smaller, the sooner. Read by `scheduling_policy: priority` alone."""
    predicted_tokens: Int64
    """Output tokens that a predictor expects (`max_tokens` without one), at least 1: all that policies and routers know of the answer."""
    request_id: NDArray[np.str_]
    """Unique names: those of the trace, or the row numbers."""
    client_names: tuple[str, ...] = ("default",)
    content: PromptContent | None = None
    """What prompts have in common, for prefix caching; None: nothing."""

    def __len__(self) -> int:
        return len(self.arrival_ns)

    @property
    def truncated(self) -> NDArray[np.bool_]:
        """bool[n]: whether the output ends because it reached `max_tokens`."""
        return self.output_tokens >= self.max_tokens

    def take(self, rows: Int64 | NDArray[np.bool_] | slice) -> RequestTable:
        """The given rows, in the given order."""
        columns = {name: getattr(self, name)[rows] for name in _columns()}
        return replace(self, **columns, content=None if self.content is None else self.content.take(rows))

    @classmethod
    def build(
        cls,
        arrival_ns: Int64,
        prompt_tokens: Int64,
        output_tokens: Int64,
        *,
        max_tokens: Int64 | None = None,
        visible_token: Int64 | None = None,
        client: Int64 | None = None,
        priority: Int64 | None = None,
        predicted_tokens: Int64 | None = None,
        request_id: NDArray[np.str_] | None = None,
        client_names: tuple[str, ...] = ("default",),
        content: PromptContent | None = None,
    ) -> RequestTable:
        """A table with defaults filled in: outputs end by their limit, nothing is thought, one client, ids are row numbers.

        Raises:
            UserError: a column has another length, a length is below 1, an output is longer than its limit, or what a prompt
                has in common with others is longer than the prompt.
        """
        n = len(arrival_ns)
        limits = np.asarray(output_tokens if max_tokens is None else max_tokens, np.int64)
        table = cls(
            arrival_ns=np.asarray(arrival_ns, np.int64),
            prompt_tokens=np.asarray(prompt_tokens, np.int64),
            output_tokens=np.asarray(output_tokens, np.int64),
            max_tokens=limits,
            visible_token=np.ones(n, np.int64) if visible_token is None else np.asarray(visible_token, np.int64),
            client=np.zeros(n, np.int64) if client is None else np.asarray(client, np.int64),
            priority=np.zeros(n, np.int64) if priority is None else np.asarray(priority, np.int64),
            predicted_tokens=limits if predicted_tokens is None else np.asarray(predicted_tokens, np.int64),
            request_id=np.arange(n).astype(str) if request_id is None else request_id,
            client_names=client_names,
            content=content,
        )
        table._check()
        return table

    def _check(self) -> None:
        for name in _columns():
            if len(getattr(self, name)) != len(self):
                raise UserError(f"requests: column {name} has {len(getattr(self, name))} rows, arrival_ns has {len(self)}")
        for name in ("prompt_tokens", "output_tokens", "visible_token", "predicted_tokens"):
            column = getattr(self, name)
            if len(column) and column.min() < 1:
                raise UserError(f"requests: {name} is {column.min()} in row {int(column.argmin())}; it must be at least 1")
        if (self.output_tokens > self.max_tokens).any():
            row = int((self.output_tokens > self.max_tokens).argmax())
            raise UserError(f"requests: output_tokens exceeds max_tokens in row {row}")
        if len(self) and (self.arrival_ns[0] < 0 or (np.diff(self.arrival_ns) < 0).any()):
            raise UserError("requests: arrival_ns must not be negative and must not decrease")
        if self.content is not None:
            self.content.check(self.prompt_tokens)


def _columns() -> list[str]:
    return [field.name for field in fields(RequestTable) if field.name not in ("client_names", "content")]
