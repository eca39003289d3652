"""What clients do when the answer does not come: time out, try again, give up."""

from __future__ import annotations

from math import log, sqrt
from typing import Literal
from zlib import crc32

import numpy as np
from pydantic import Field

from simulator.clients.ratelimit import RateLimit
from simulator.workload.base import NS_PER_S, Int64, Spec, stream

Failure = Literal["timeout", "rejected", "lost"]


class Patience(Spec):
    """How long a user waits, from the first sending on, before leaving for good."""

    until: Literal["ttft", "e2e"] = "ttft"
    """What ends the wait: the first token, or the whole answer."""
    kind: Literal["exponential", "lognormal", "constant"] = "exponential"
    mean_s: float = Field(gt=0)
    cv: float = Field(1.0, gt=0)
    """Of the lognormal alone."""

    def draw_ns(self, seed: int, num_requests: int) -> Int64:
        """int64[n], at least 1: that of request i does not depend on how many there are, nor on what becomes of them."""
        rng = stream(seed, "clients/patience")
        if self.kind == "constant":
            seconds = np.full(num_requests, self.mean_s)
        elif self.kind == "exponential":
            seconds = -self.mean_s * np.log1p(-rng.random(num_requests))
        else:
            sigma = sqrt(log(1 + self.cv**2))
            seconds = self.mean_s * np.exp(sigma * rng.standard_normal(num_requests) - sigma**2 / 2)
        patience_ns: Int64 = np.maximum(np.rint(seconds * NS_PER_S), 1).astype(np.int64)
        return patience_ns


class Retry(Spec):
    """Another attempt after a back-off that doubles. The defaults are openai-python's (`_constants.py`, `_base_client.py`)."""

    max_attempts: int = Field(3, ge=1)
    """The first one included."""
    after: tuple[Failure, ...] = ("timeout", "rejected", "lost")
    base_s: float = Field(0.5, gt=0)
    factor: float = Field(2.0, ge=1)
    max_s: float = Field(8.0, gt=0)
    jitter: float = Field(0.25, ge=0, le=1)
    """Share of the back-off that chance may take away; 1: full jitter."""
    longest_retry_after_s: float = Field(60.0, ge=0)
    """A server's `Retry-After` up to this is obeyed, a longer one ignored."""

    def backoff_ns(self, seed: int, row: int, attempt: int, retry_after_ns: int) -> int:
        """From the end of attempt number `attempt` of the request in `row` to the next; at least 1."""
        if 0 < retry_after_ns <= self.longest_retry_after_s * NS_PER_S:
            return retry_after_ns
        seconds = min(self.base_s * self.factor ** min(attempt - 1, 1000), self.max_s)
        if self.jitter:
            # A stream a request, indexed by the attempt: what others do changes nothing.
            rng = np.random.default_rng(np.random.SeedSequence([seed, crc32(b"clients/backoff"), row]))
            seconds *= 1 - self.jitter * float(rng.random(attempt)[-1])
        return max(round(seconds * NS_PER_S), 1)


class ClientConfig(Spec):
    """The clients of a service, and the limit that its front sets them."""

    timeout_s: float | None = Field(None, gt=0)
    """An attempt that is not answered in full by then is aborted."""
    patience: Patience | None = None
    retry: Retry | None = None
    """null: one attempt."""
    rate_limit: RateLimit | None = None

    def describe(self) -> str:
        """One line for a report."""
        parts = []
        if self.rate_limit is not None:
            limit = self.rate_limit
            parts.append(f"429 above {limit.rate:g}/s" if limit.kind == "token_bucket" else f"429 above {limit.limit:,} outstanding")
        if self.timeout_s is not None:
            parts.append(f"timeout {self.timeout_s:g} s")
        if self.retry is not None:
            parts.append(f"up to {self.retry.max_attempts} attempts")
        if self.patience is not None:
            parts.append(f"patience {self.patience.mean_s:g} s on average for {self.patience.until.upper()}")
        return ", ".join(parts) or "one attempt, however long it takes"
