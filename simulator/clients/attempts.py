"""What impatient clients made of their requests: a request is one or more attempts, each of them a row of the result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from simulator.request import RequestTable

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


class Outcome(IntEnum):
    """Of one attempt. Law: sent = finished + aborted + rejected + lost + in flight."""

    UNSENT = 0
    IN_FLIGHT = 1
    FINISHED = 2
    """Its whole answer arrived."""
    ABORTED = 3
    """Its client left before."""
    REJECTED = 4
    """The front answered 429 (too many requests), or 503 (no replica serves)."""
    LOST = 5
    """Its replica failed."""


@dataclass(frozen=True, eq=False)
class Attempts:
    """Attempts in the order in which they were first sent: those numbered 1 are the workload's rows, retries follow. Shapes: (m,)."""

    requests: RequestTable
    """m rows: what each attempt asked."""
    request: Int64
    """Row of the workload."""
    number: Int64
    """1 for the first attempt."""
    outcome: NDArray[np.int8]
    """`Outcome`."""
    left_ns: Int64
    """When the client left, or was turned away; −1 otherwise."""
    gave_up: Bool
    """The last attempt of a request that is not tried again."""
    asked_ns: Int64
    """When the request was first sent, −1 if it was not."""
    last: Bool
    """Whether no attempt came after it."""

    @classmethod
    def of(
        cls,
        asked: RequestTable,
        request: list[int],
        number: list[int],
        outcome: list[Outcome],
        left_ns: list[int],
        given_up: set[int],
        sent_ns: Int64,
    ) -> Attempts:
        """From the rows that the clients kept; `given_up` are rows of the workload."""
        rows, numbers = np.array(request, np.int64), np.array(number, np.int64)
        last_row = np.zeros(len(asked), np.int64)
        last_row[rows] = np.arange(len(rows))  # later attempts overwrite earlier ones
        last = np.zeros(len(rows), np.bool_)
        last[last_row] = True
        table = asked.take(rows)
        again = numbers > 1
        ids = [f"{name}#{attempt}" if attempt > 1 else name for name, attempt in zip(table.request_id.tolist(), number, strict=True)]
        table = replace(table, arrival_ns=np.where(again, sent_ns, table.arrival_ns), request_id=np.array(ids, np.str_))
        left_for_good = np.zeros(len(asked), np.bool_)
        left_for_good[list(given_up)] = True
        return cls(
            requests=table,
            request=rows,
            number=numbers,
            outcome=np.array(outcome, np.int8),
            left_ns=np.array(left_ns, np.int64),
            gave_up=last & left_for_good[rows],
            asked_ns=sent_ns[: len(asked)][rows],
            last=last,
        )

    @property
    def pending(self) -> Bool:
        """bool[m]: ended without an answer, and to be tried again after the end of the run."""
        return self.last & (self.left_ns >= 0) & ~self.gave_up
