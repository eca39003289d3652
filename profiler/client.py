"""A client that sends requests at their times and notes when answers come."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any, cast

import numpy as np
from tqdm import tqdm

from profiler.errors import EngineError
from profiler.replicas import Replica
from profiler.stop import Stop
from profiler.traffic import NO_PREFIX, Traffic
from simulator.routers import Ask, Load, Router

IDLE_S = 600.0
"""Engines from which nothing has come for so long are dead."""
ABORT_S = 10.0
"""For clients to abort their requests."""


class Seen:
    """One request at its client: seconds of `perf_counter`."""

    def __init__(self, name: str, prompt_tokens: int, output_tokens: int) -> None:
        self.name, self.prompt_tokens = name, prompt_tokens
        self.output_tokens = output_tokens
        """What was asked for."""
        self.replica = 0
        self.sent_s = 0.0
        self.output_s: list[float] = []
        self.received_tokens = 0
        self.ended = False

    def row(self, start_s: float) -> dict[str, Any]:
        """A row of requests.csv.gz. Tokens that came together have no gap between them.

        Of an answer that did not end there is no E2E nor ITL; `output_tokens` is what was asked for, which a replay needs.
        """
        gaps_s = np.concatenate([np.diff(self.output_s), np.zeros(self.received_tokens - len(self.output_s))])
        p50, p99, longest = np.percentile(gaps_s, [50, 99, 100]) if self.ended and len(gaps_s) else (np.nan, np.nan, np.nan)
        return {
            "request_id": self.name,
            "arrival_s": self.sent_s - start_s,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.received_tokens if self.ended else self.output_tokens,
            "prefix_id": "",
            "prefix_tokens": 0,
            "ttft_s": self.output_s[0] - self.sent_s if self.output_s else np.nan,
            "e2e_s": self.output_s[-1] - self.sent_s if self.ended else np.nan,
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
    """When its last answer ended, or when it was cut."""
    cut: bool
    """Whether it was stopped before its last answer ended: what was sent and had not ended was aborted, what was not sent is left out."""
    seen: dict[int, Seen]
    """By row of the traffic, in its order: the requests that were sent."""

    @property
    def unfinished(self) -> int:
        """Requests whose answers did not end."""
        return sum(not seen.ended for seen in self.seen.values())

    def rows(self) -> list[dict[str, Any]]:
        """Rows of requests.csv.gz; a trace that was cut says how many tokens came."""
        rows = []
        for index, seen in self.seen.items():
            row, group = seen.row(self.start_s), self.traffic.prefix[index]
            if group != NO_PREFIX:
                row |= {"prefix_id": str(group), "prefix_tokens": self.traffic.prefix_tokens}
            if self.cut:
                row["received_tokens"] = seen.received_tokens
            rows.append(row | {"replica": seen.replica})
        return rows


async def serve(traffic: Traffic, replicas: Sequence[Replica], router: Router, stop: Stop) -> Served:
    """Sends the traffic and waits for its last answer, or aborts what is outstanding when it has to stop.

    Raises:
        EngineError: nothing came for `IDLE_S`.
    """
    start_s, sent = perf_counter(), dict[int, Seen]()
    with tqdm(total=len(traffic.requests), unit="request", desc=traffic.folder.name, file=sys.stderr) as bar:
        answers = asyncio.gather(*(_client(traffic, row, start_s, replicas, router, sent, bar) for row in range(len(traffic.requests))))
        stopped = asyncio.create_task(stop.wait())
        first: set[asyncio.Future[Any]] = {answers, stopped}
        while not answers.done() and not stopped.done():
            await asyncio.wait(first, timeout=IDLE_S / 10, return_when=asyncio.FIRST_COMPLETED)
            silent_s = perf_counter() - max(start_s, *(replica.heard_s for replica in replicas))
            if silent_s > IDLE_S and any(replica.outstanding for replica in replicas):
                raise EngineError(f"vLLM died while serving: nothing came for {silent_s:.0f} s")
        end_s, cut = perf_counter(), not answers.done()
        stopped.cancel()
        if cut:
            answers.cancel()  # every client, and so its request in the engine
            with suppress(asyncio.CancelledError, TimeoutError):
                await asyncio.wait_for(answers, ABORT_S)
        else:
            answers.result()
    return Served(traffic, start_s, end_s, cut, dict(sorted(sent.items())))


async def _client(
    traffic: Traffic, row: int, start_s: float, replicas: Sequence[Replica], router: Router, sent: dict[int, Seen], bar: Any
) -> None:
    requests = traffic.requests
    await asyncio.sleep(max(start_s + requests.arrival_ns[row] / 1e9 - perf_counter(), 0.0))
    prompt = traffic.prompt(row)
    ask = Ask(row, len(prompt), int(requests.max_tokens[row]))
    # Of real engines only the number of outstanding requests is seen: `record` refuses routers that look at more.
    index = router.route(cast("Sequence[Load]", replicas), ask)
    seen = sent[row] = Seen(str(requests.request_id[row]), len(prompt), int(requests.output_tokens[row]))
    seen.replica = index
    await request(replicas[index], seen, prompt)
    bar.update()


async def request(replica: Replica, seen: Seen, prompt: list[int]) -> None:
    """One request, from sending it to its last token."""
    replica.outstanding += 1
    seen.sent_s = perf_counter()
    async for num_tokens in replica.generate(seen.name, prompt, seen.output_tokens):
        replica.heard_s = perf_counter()
        seen.output_s.append(replica.heard_s)
        seen.received_tokens += num_tokens
    seen.ended = True
    replica.outstanding -= 1


async def warm_up(replica: Replica, max_num_seqs: int) -> None:
    """Kernels are compiled at the first batch of their shape: batches of every size that doubles, before anything is recorded."""
    for size in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        if size <= max_num_seqs:
            await asyncio.gather(*(request(replica, Seen(f"warm-{size}-{i}", 17 + i, 4), [1 + i] * (17 + i)) for i in range(size)))


def quiet_garbage_collector() -> None:
    """What is there by now is never looked at again: a full collection of torch's and vLLM's objects stops the client for 0.4 s.

    vLLM's own server and engine core do the same (0.26 `utils/gc_utils.py` `freeze_gc_heap`).
    """
    gc.collect()
    gc.freeze()
