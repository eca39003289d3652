"""Production traffic: a sum of client classes, each with its own arrivals, lengths and priority."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from pydantic import Field

from simulator.errors import UserError
from simulator.request import RequestTable
from simulator.workload.arrivals import MOST_REQUESTS, Arrivals, arrivals_s, describe_arrivals
from simulator.workload.base import NS_PER_S, Float64, Spec
from simulator.workload.lengths import Lengths, LengthTable, Scores


class ClientClass(Spec):
    """`num_clients` independent clients alike, each sending at the rate of `arrivals`."""

    arrivals: Arrivals
    lengths: Lengths
    num_clients: int = Field(1, ge=1, le=100_000)
    priority: int = 0
    """vLLM's: the smaller, the sooner."""


class ClientsSpec(Spec):
    """The merged traffic of several classes, by name."""

    kind: Literal["clients"] = "clients"
    clients: dict[str, ClientClass] = Field(min_length=1)

    @property
    def rate(self) -> float:
        """Requests a second of all clients together."""
        return sum(c.arrivals.rate * c.num_clients for c in self.clients.values())

    def describe(self) -> str:
        """Each class in a few words."""
        parts = (
            f"{name}: {f'{c.num_clients} × ' if c.num_clients > 1 else ''}{describe_arrivals(c.arrivals)}, {c.lengths.describe()}"
            for name, c in self.clients.items()
        )
        return f"{self.rate:g} requests/s of {len(self.clients)} client classes ({'; '.join(parts)})"


def requests_table(
    times_s: Float64, lengths: LengthTable, *, client: int = 0, priority: int = 0, names: tuple[str, ...] = ("default",)
) -> RequestTable:
    """One client's requests."""
    num = len(times_s)
    return RequestTable.build(
        arrival_ns=np.rint(times_s * NS_PER_S).astype(np.int64),
        prompt_tokens=lengths.prompt_tokens,
        output_tokens=lengths.output_tokens,
        max_tokens=lengths.max_tokens,
        visible_token=lengths.visible_token,
        client=np.full(num, client, np.int64),
        priority=np.full(num, priority, np.int64),
        client_names=names,
    )


def merged(spec: ClientsSpec, seed: int, *, duration_s: float | None, num_requests: int | None) -> RequestTable:
    """The requests of all clients by arrival: the first `num_requests`, those before `duration_s`, or whichever ends first.

    Raises:
        UserError: neither end is given, or the run would have more requests than memory holds.
    """
    if duration_s is None and num_requests is None:
        raise UserError("workload: give duration_s or num_requests, else the arrivals never end")
    if num_requests is not None and num_requests > MOST_REQUESTS:
        raise UserError(f"workload: {num_requests:.3g} requests are asked for; at most {MOST_REQUESTS:,} fit into a run")
    if num_requests is None:
        assert duration_s is not None
        return _before(spec, seed, duration_s)
    longest_s = np.inf if duration_s is None else duration_s
    until_s = min(longest_s, (1.2 * num_requests + 20) / spec.rate)
    while len(table := _before(spec, seed, until_s)) < num_requests and until_s < longest_s:
        until_s = min(longest_s, 2 * until_s)
    return table.take(slice(num_requests))


def _before(spec: ClientsSpec, seed: int, duration_s: float) -> RequestTable:
    if spec.rate * duration_s > MOST_REQUESTS:
        raise UserError(f"workload: {spec.rate * duration_s:.3g} requests are asked for; at most {MOST_REQUESTS:,} fit into a run")
    tables = list(_each_client(spec, seed, duration_s))
    arrival_ns = np.concatenate([table.arrival_ns for table in tables])
    rows = np.argsort(arrival_ns, kind="stable")

    def column(name: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        joined: np.ndarray[tuple[int], np.dtype[np.int64]] = np.concatenate([getattr(table, name) for table in tables])[rows]
        return joined

    return RequestTable.build(
        arrival_ns=arrival_ns[rows],
        prompt_tokens=column("prompt_tokens"),
        output_tokens=column("output_tokens"),
        max_tokens=column("max_tokens"),
        visible_token=column("visible_token"),
        client=column("client"),
        priority=column("priority"),
        client_names=tuple(spec.clients),
    )


def _each_client(spec: ClientsSpec, seed: int, duration_s: float) -> Iterator[RequestTable]:
    for index, (class_name, client) in enumerate(spec.clients.items()):
        for copy in range(client.num_clients):
            name = f"{class_name}/{copy}"
            times_s = arrivals_s(client.arrivals, seed, name, duration_s=duration_s)
            lengths = client.lengths.sample(Scores.draw(len(times_s), seed, name))
            yield requests_table(times_s, lengths, client=index, priority=client.priority)
