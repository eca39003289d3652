"""Random engines and requests, cramped enough to make every rule of the scheduler apply."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import asdict
from typing import Any, Literal, NamedTuple

import numpy as np

from simulator.engine import EngineConfig
from simulator.prefix.content import NOBODY
from simulator.speculation import Acceptance, Drafting

Version = Literal["0.26", "0.32"]


class Arrival(NamedTuple):
    """One request. Its row in the case is its place in line, too: no two arrive at the same time."""

    handled: int
    """It is seen once this many results of steps with tokens are in: a clock that knows of decisions only, not of time."""
    prompt_tokens: int
    output_tokens: int
    """The token with this number ends the output: it is the end of sequence, unless a limit comes first."""
    max_tokens: int
    priority: int
    segments: tuple[tuple[int, int], ...] = ()
    """(content id, tokens) of what others may have, too (`simulator.prefix.content`)."""
    answer_id: int = NOBODY
    follows: int | None = None
    """The row whose answer the prompt repeats: the request is not seen before that one is finished."""


class Case(NamedTuple):
    """What one engine serves."""

    engine: EngineConfig
    arrivals: tuple[Arrival, ...]
    drafting: Drafting | None = None
    """Which drafts are accepted, with `engine.speculative`."""

    def as_json(self) -> dict[str, Any]:
        """For `from_json`."""
        engine = self.engine.model_dump(exclude_defaults=True) | {"enable_prefix_caching": self.engine.enable_prefix_caching}
        document = {"engine": engine, "arrivals": self.arrivals}
        return document if self.drafting is None else document | {"drafting": asdict(self.drafting)}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Case:
        """What `as_json` wrote."""
        drafting = document.get("drafting")
        if drafting is not None:
            acceptance = drafting["acceptance"] | {"rates": tuple(drafting["acceptance"]["rates"]), "growth": ()}
            drafting = Drafting(Acceptance(**acceptance), drafting["seed"])
        # It was off unless said otherwise when the older samples were written.
        engine = EngineConfig(**{"enable_prefix_caching": False} | document["engine"])
        return cls(engine, tuple(map(_arrival, document["arrivals"])), drafting)


def _arrival(row: list[Any]) -> Arrival:
    arrival = Arrival(*row)
    return arrival._replace(segments=tuple((content_id, tokens) for content_id, tokens in arrival.segments))


class Inbox:
    """The requests of a case that are still to be seen."""

    def __init__(self, case: Case) -> None:
        self._arrivals = case.arrivals
        self._rows = list(range(len(case.arrivals)))

    def due(self, handled: int, finished: Container[int]) -> list[int]:
        """Takes out those that can be seen now, in their order."""
        due = [row for row in self._rows if self._arrivals[row].handled <= handled and self._is_free(row, finished)]
        self._rows = [row for row in self._rows if row not in due]
        return due

    def next_handled(self, finished: Container[int]) -> int | None:
        """When the next can be seen, if nothing else happens; None: there is none."""
        return min((self._arrivals[row].handled for row in self._rows if self._is_free(row, finished)), default=None)

    def _is_free(self, row: int, finished: Container[int]) -> bool:
        follows = self._arrivals[row].follows
        return follows is None or follows in finished


def random_case(seed: int, vllm_version: Version = "0.26") -> Case:
    """The same case for the same seed, whatever the version."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 48))
    handled = np.cumsum(rng.exponential(rng.choice([0.3, 2.0, 8.0, 30.0]), n)).astype(int)
    prompt_tokens = rng.integers(1, rng.choice([2, 20, 60, 300]) + 1, n)
    output_tokens = rng.integers(1, rng.choice([3, 30, 80, 200]) + 1, n)
    # vLLM's entrance limits what may be asked for to the room in `max_model_len`; its engine ends what goes beyond that.
    max_tokens = output_tokens + (rng.random(n) < rng.choice([0.0, 0.5, 1.0])) * rng.integers(1, 100, n)
    max_model_len = int((prompt_tokens + output_tokens).max()) + int(rng.choice([0, 0, 1, 30]))
    columns = (handled, prompt_tokens, output_tokens, max_tokens, rng.integers(0, 3, n))
    arrivals = tuple(Arrival(*row) for row in zip(*(column.tolist() for column in columns), strict=True))
    options = random_options(rng, max_model_len)
    if rng.random() < 0.3:
        arrivals, options = _by_priority_to_the_last_block(rng, arrivals, options)
    return Case(EngineConfig(**options, vllm_version=vllm_version), arrivals)


def speculative_case(seed: int, vllm_version: Version = "0.26") -> Case:
    """A random case whose engine speculates; in every fifth of them requests come one token long, into running decodes."""
    case = random_case(seed, vllm_version)
    if seed % 5 == 0:
        case = case._replace(arrivals=tuple(arrival._replace(prompt_tokens=1) for arrival in case.arrivals))
    return with_drafts(case, seed)


def with_drafts(case: Case, seed: int) -> Case:
    """The case on an engine that speculates."""
    rng = np.random.default_rng([seed, 2])
    drafts = int(rng.choice([1, 2, 3, 5]))
    method = str(rng.choice(["ngram", "draft_model", "eagle", "eagle3"], p=[0.15, 0.15, 0.35, 0.35]))
    rates = tuple(np.sort(rng.random(drafts))[::-1].round(3).tolist())
    proposed = float(rng.choice([1.0, 0.6])) if method == "ngram" else 1.0
    options = case.engine.model_dump() | {"speculative": {"method": method, "num_speculative_tokens": drafts}}
    if method in ("ngram", "draft_model"):
        options["async_scheduling"] = False
    threshold = options["long_prefill_token_threshold"]
    # Below 1 + K, vLLM counts drafts of a request of one token that it never scheduled: their number goes below zero.
    options["long_prefill_token_threshold"] = max(threshold, 1 + drafts) if threshold else 0
    options["max_num_batched_tokens"] += options["max_num_seqs"] * (method == "draft_model")
    return Case(EngineConfig(**options), case.arrivals, Drafting(Acceptance(rates, proposed), seed))


def _by_priority_to_the_last_block(
    rng: np.random.Generator, arrivals: tuple[Arrival, ...], options: dict[str, Any]
) -> tuple[tuple[Arrival, ...], dict[str, Any]]:
    """Any token may take the last block: victims that had nothing left to do, and tokens refunded that others wait for."""
    prompt, output, budget, threshold, pools = (2, 7, 16, 0, 1) if len(arrivals) % 2 else (20, 20, 8, 3, 2)
    requests = []
    for arrival in arrivals:
        output_tokens = int(rng.integers(1, output + 1))
        prompt_tokens = int(rng.integers(1, prompt + 1))
        requests.append(Arrival(arrival.handled // 4, prompt_tokens, output_tokens, output_tokens, arrival.priority))
    return tuple(requests), options | {
        "max_model_len": prompt + output,
        "max_num_seqs": 8,
        "max_num_batched_tokens": budget,
        "block_size": 1,
        "num_gpu_blocks": pools * (prompt + output) + 1,
        "enable_chunked_prefill": True,
        "long_prefill_token_threshold": threshold,
        "scheduling_policy": "priority",
        "scheduler_reserve_full_isl": False,
        "watermark": 0.0,
        "async_scheduling": True,
    }


def random_options(rng: np.random.Generator, max_model_len: int) -> dict[str, Any]:
    """Often too few blocks for the requests it runs, too few tokens a step, or too few seats; never what vLLM would refuse to start."""
    block_size = int(rng.choice([16, 16, 16, 4, 1]))
    usable_blocks = int(-(-max_model_len // block_size) * rng.choice([1.0, 1.3, 2.0, 4.0]))
    chunked = bool(rng.random() < 0.85)
    max_num_seqs = int(rng.choice([1, 3, 8, 24]))
    budget = int(rng.choice([2, 5, 16, 64, 256])) if chunked else max_model_len + int(rng.integers(0, 64))
    return {
        "max_model_len": max_model_len,
        # vLLM wants a token for every seat.
        "max_num_batched_tokens": max(budget, max_num_seqs),
        "max_num_seqs": max_num_seqs,
        "block_size": block_size,
        "num_gpu_blocks": usable_blocks + 1,
        "enable_chunked_prefill": chunked,
        "enable_prefix_caching": False,
        "long_prefill_token_threshold": min(int(rng.choice([0, 0, 0, 1, 3, 12, 48])), max_model_len),
        "scheduling_policy": str(rng.choice(["fcfs", "priority"])),
        "scheduler_reserve_full_isl": bool(rng.random() < 0.6),
        "watermark": float(rng.choice([0.0, 0.0, 0.1, 0.4])),
        "async_scheduling": bool(rng.random() < 0.6),
    }
