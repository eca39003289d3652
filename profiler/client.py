"""A client that sends requests at their times and notes when answers come."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, cast

import numpy as np
from tqdm import tqdm

from profiler.errors import EngineError
from profiler.replicas import Replica
from profiler.traffic import NO_PREFIX, Traffic
from simulator.routers import Ask, Load, Router

IDLE_S = 600.0
"""Engines from which nothing has come for so long are dead."""


class Seen:
    """One request at its client: seconds of `perf_counter`."""

    def __init__(self, name: str, prompt_tokens: int) -> None:
        self.name, self.prompt_tokens = name, prompt_tokens
        self.replica = 0
        self.sent_s = 0.0
        self.output_s: list[float] = []
        self.num_tokens = 0

    def row(self, start_s: float) -> dict[str, Any]:
        """A row of requests.csv.gz. Tokens that came together have no gap between them."""
        gaps_s = np.concatenate([np.diff(self.output_s), np.zeros(self.num_tokens - len(self.output_s))])
        p50, p99, longest = np.percentile(gaps_s, [50, 99, 100]) if len(gaps_s) else (np.nan, np.nan, np.nan)
        return {
            "request_id": self.name,
            "arrival_s": self.sent_s - start_s,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.num_tokens,
            "prefix_id": "",
            "prefix_tokens": 0,
            "ttft_s": self.output_s[0] - self.sent_s,
            "e2e_s": self.output_s[-1] - self.sent_s,
            "itl_p50_s": p50,
            "itl_p99_s": p99,
            "itl_max_s": longest,
        }


@dataclass(frozen=True)
class Served:
    """A trace's traffic as the client saw it."""

    traffic: Traffic
    start_s: float
    """The trace's start, by `perf_counter`."""
    end_s: float
    """When its last answer ended."""
    seen: list[Seen]

    def rows(self) -> list[dict[str, Any]]:
        """Rows of requests.csv.gz."""
        rows = [seen.row(self.start_s) for seen in self.seen]
        for row, group, seen in zip(rows, self.traffic.prefix, self.seen, strict=True):
            if group != NO_PREFIX:
                row |= {"prefix_id": str(group), "prefix_tokens": self.traffic.prefix_tokens}
            row["replica"] = seen.replica
        return rows


async def serve(traffic: Traffic, replicas: Sequence[Replica], router: Router) -> Served:
    """Sends the traffic and waits for its last answer.

    Raises:
        EngineError: nothing came for `IDLE_S`.
    """
    start_s = perf_counter()
    with tqdm(total=len(traffic.requests), unit="request", desc=traffic.folder.name, file=sys.stderr) as bar:
        clients = [asyncio.create_task(_client(traffic, row, start_s, replicas, router, bar)) for row in range(len(traffic.requests))]
        waiting: set[asyncio.Task[Seen]] = set(clients)
        while waiting:
            ended, waiting = await asyncio.wait(waiting, timeout=IDLE_S / 10, return_when=asyncio.FIRST_EXCEPTION)
            if failed := [task for task in ended if task.exception()]:
                raise failed[0].exception() or AssertionError
            silent_s = perf_counter() - max(start_s, *(replica.heard_s for replica in replicas))
            if silent_s > IDLE_S and any(replica.outstanding for replica in replicas):
                raise EngineError(f"vLLM died while serving: nothing came for {silent_s:.0f} s")
    return Served(traffic, start_s, perf_counter(), [task.result() for task in clients])


async def _client(traffic: Traffic, row: int, start_s: float, replicas: Sequence[Replica], router: Router, bar: Any) -> Seen:
    requests = traffic.requests
    await asyncio.sleep(max(start_s + requests.arrival_ns[row] / 1e9 - perf_counter(), 0.0))
    prompt = traffic.prompt(row)
    ask = Ask(row, len(prompt), int(requests.max_tokens[row]))
    # Of real engines only the number of outstanding requests is seen: `record` refuses routers that look at more.
    index = router.route(cast("Sequence[Load]", replicas), ask)
    seen = await request(replicas[index], str(requests.request_id[row]), prompt, int(requests.output_tokens[row]))
    seen.replica = index
    bar.update()
    return seen


async def request(replica: Replica, name: str, prompt: list[int], output_tokens: int) -> Seen:
    """One request, from sending it to its last token."""
    seen = Seen(name, len(prompt))
    replica.outstanding += 1
    seen.sent_s = perf_counter()
    async for num_tokens in replica.generate(name, prompt, output_tokens):
        replica.heard_s = perf_counter()
        seen.output_s.append(replica.heard_s)
        seen.num_tokens += num_tokens
    replica.outstanding -= 1
    return seen


async def warm_up(replica: Replica, max_num_seqs: int) -> None:
    """Kernels are compiled at the first batch of their shape: batches of every size that doubles, before anything is recorded."""
    for size in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        if size <= max_num_seqs:
            await asyncio.gather(*(request(replica, f"warm-{size}-{i}", [1 + i] * (17 + i), 4) for i in range(size)))


def quiet_garbage_collector() -> None:
    """What is there by now is never looked at again: a full collection of torch's and vLLM's objects stops the client for 0.4 s.

    vLLM's own server and engine core do the same (0.26 `utils/gc_utils.py` `freeze_gc_heap`).
    """
    gc.collect()
    gc.freeze()
