"""The front's rate limit: who is turned away with 429, and when to come back."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from pydantic import Field

from simulator.workload.base import NS_PER_S, Spec


class TokenBucket(Spec):
    """At most `rate` requests a second in the long run, `burst` of them at once."""

    kind: Literal["token_bucket"] = "token_bucket"
    rate: float = Field(gt=0)
    burst: int = Field(1, ge=1)


class MaxOutstanding(Spec):
    """At most so many requests in the service, whatever replica they are on."""

    kind: Literal["max_outstanding"] = "max_outstanding"
    limit: int = Field(ge=1)
    retry_after_s: float | None = Field(None, gt=0)
    """`Retry-After` of the answer; null: none, clients back off by themselves."""


RateLimit = Annotated[TokenBucket | MaxOutstanding, Field(discriminator="kind")]


class Limiter(Protocol):
    """Lets a request through (None), or tells after how many nanoseconds to come back (0: it doesn't tell)."""

    def refuse_ns(self, now_ns: int, outstanding: int) -> int | None: ...


class BucketLimiter:
    """The bucket as its virtual schedule (GCRA, ITU-T I.371): one integer, exact however long it runs."""

    def __init__(self, spec: TokenBucket) -> None:
        self._emission_ns = max(round(NS_PER_S / spec.rate), 1)
        self._tolerance_ns = (spec.burst - 1) * self._emission_ns
        self._due_ns = 0
        """When the next request would come if all came evenly."""

    def refuse_ns(self, now_ns: int, outstanding: int) -> int | None:
        del outstanding
        early_ns = self._due_ns - self._tolerance_ns - now_ns
        if early_ns > 0:
            return early_ns
        self._due_ns = max(self._due_ns, now_ns) + self._emission_ns
        return None


class OutstandingLimiter:
    """Counts what the front has passed on and not seen answered or left."""

    def __init__(self, spec: MaxOutstanding) -> None:
        self._limit = spec.limit
        self._retry_after_ns = round((spec.retry_after_s or 0) * NS_PER_S)

    def refuse_ns(self, now_ns: int, outstanding: int) -> int | None:
        del now_ns
        return self._retry_after_ns if outstanding >= self._limit else None


def make_limiter(spec: TokenBucket | MaxOutstanding) -> Limiter:
    """The limiter that a spec describes."""
    return BucketLimiter(spec) if isinstance(spec, TokenBucket) else OutstandingLimiter(spec)
