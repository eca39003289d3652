"""Conversations: each turn is sent after the answer to the last one and a think time, and repeats what was said before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple
from zlib import crc32

import numpy as np
from pydantic import Field

from simulator.errors import UserError
from simulator.prefix.content import NOBODY, PromptContent
from simulator.request import RequestTable
from simulator.workload.arrivals import MOST_REQUESTS, Arrivals, arrivals_s, describe_arrivals
from simulator.workload.base import NS_PER_S, Float64, Int64, Spec
from simulator.workload.lengths import Lengths, LengthTable, Scores
from simulator.workload.shared import SharedPrompts

MOST_TOOL_CALLS = 16
"""Of one turn."""


class SessionsSpec(Spec):
    """Sessions that arrive whatever becomes of the earlier ones; within a session, each turn waits for the answer before."""

    kind: Literal["sessions"] = "sessions"
    arrivals: Arrivals
    """Of sessions."""
    lengths: Lengths
    """`prompt`: what the user adds in a turn; `output`: one answer."""
    mean_turns: float = Field(4.0, ge=1)
    """Turns of the user; their number is geometric, and at most `max_turns`."""
    max_turns: int = Field(20, ge=1)
    think_s: float = Field(30.0, ge=0)
    """Mean time from an answer to the user's next turn; exponential."""
    tool_calls_per_turn: float = Field(0.0, ge=0)
    """Mean number of answers of a turn that call a tool, whose result is sent back as the next request; geometric."""
    tool_tokens: int = Field(500, ge=1)
    """Of a tool's result."""
    tool_s: float = Field(1.0, ge=0)
    """Time that a tool takes."""
    thinking: Literal["kept", "stripped", "kept_in_tool_loops"] = "stripped"
    """What later prompts repeat of an answer's thinking. Stripped, the rest stands at other positions than those that were computed."""
    shared_prompts: SharedPrompts | None = None
    priority: int = 0

    def describe(self) -> str:
        """One line."""
        tools = f", {self.tool_calls_per_turn:g} tool calls a turn" if self.tool_calls_per_turn else ""
        return (
            f"sessions of {self.mean_turns:g} turns{tools}, think time {self.think_s:g} s, thinking {self.thinking.replace('_', ' ')};"
            f" {describe_arrivals(self.arrivals)}; {self.lengths.describe()}"
        )


@dataclass(frozen=True, eq=False)
class Sessions:
    """Each request with a predecessor is sent `think_ns` after that one's answer has ended, the others at their `arrival_ns`."""

    follows: Int64
    """int64[n]: row of the predecessor, an earlier one; −1: none."""
    think_ns: Int64
    """int64[n]"""


class _Call(NamedTuple):
    """One request of a session, before its lengths are known."""

    by_user: bool
    think_ns: int


class _Said(NamedTuple):
    """A piece of a conversation."""

    content_id: int
    tokens: int
    visible_id: int = NOBODY
    visible_tokens: int = 0
    """Of an answer: what is left of it without its thinking."""


def sessions(
    spec: SessionsSpec, seed: int, max_model_len: int, duration_s: float | None, num_requests: int | None
) -> tuple[RequestTable, Sessions, int]:
    """(the requests in the order of their sessions, who follows whom, sessions turned away for a first prompt that is too long).

    A session ends before a prompt that would reach `max_model_len`. What a session is depends on its number and the seed alone.

    Raises:
        UserError: the run has no end, or no session.
    """
    if duration_s is None and num_requests is None:
        raise UserError("workload: give duration_s or num_requests, else the arrivals never end")
    if num_requests is not None and num_requests > MOST_REQUESTS:
        raise UserError(f"workload: {num_requests:.3g} requests are asked for; at most {MOST_REQUESTS:,} fit into a run")
    times_s = arrivals_s(spec.arrivals, seed, duration_s=duration_s, num_requests=num_requests)
    writer = _Writer(spec, seed, times_s, max_model_len)
    rejected = 0
    for session in range(len(times_s)):
        if num_requests is not None and len(writer.rows) >= num_requests:
            break
        rejected += writer.write(session) == 0
    if not writer.rows:
        raise UserError("workload: no session arrives within duration_s whose first prompt fits into max_model_len")
    return *writer.table(num_requests), rejected


class _Writer:
    """Writes sessions as rows."""

    def __init__(self, spec: SessionsSpec, seed: int, times_s: Float64, max_model_len: int) -> None:
        self.spec = spec
        self.rows: list[tuple[int, ...]] = []
        """(arrival_ns, prompt, output, max_tokens, visible, follows, think_ns, answer id)"""
        self._segments: list[list[tuple[int, int]]] = []
        self._arrival_ns = np.rint(times_s * NS_PER_S).astype(np.int64).tolist()
        self._max_model_len = max_model_len
        self._seed = seed
        self._lengths: list[LengthTable] = []
        num = len(times_s)
        self._heads = np.full(num, NOBODY) if spec.shared_prompts is None else spec.shared_prompts.choose(num, seed)
        self._next_id = 0 if spec.shared_prompts is None else spec.shared_prompts.num_shared_prompts

    def write(self, session: int) -> int:
        """The requests of one session; returns their number."""
        history: list[_Said] = []
        head = int(self._heads[session])
        if head != NOBODY and self.spec.shared_prompts is not None:
            history.append(_Said(head, self.spec.shared_prompts.shared_prompt_tokens))
        written = 0
        calls = self._calls(session)
        for place, call in enumerate(calls):
            lengths, row = self._lengths_of(place), session
            if call.by_user and self.spec.thinking == "kept_in_tool_loops":
                history = [self._without_thinking(said) for said in history]
            history.append(_Said(self._new_id(), int(lengths.prompt_tokens[row]) if call.by_user else self.spec.tool_tokens))
            prompt_tokens = sum(said.tokens for said in history)
            if prompt_tokens >= self._max_model_len:
                break
            limit = min(int(lengths.max_tokens[row]), self._max_model_len - prompt_tokens)
            output_tokens = min(int(lengths.output_tokens[row]), limit)
            visible = int(lengths.visible_token[row])
            answer = _Said(self._new_id(), output_tokens, self._new_id(), max(output_tokens - visible + 1, 0))
            self._segments.append([(said.content_id, said.tokens) for said in history])
            follows = len(self.rows) - 1 if written else NOBODY
            columns = (prompt_tokens, output_tokens, limit, visible, follows, call.think_ns, answer.content_id)
            self.rows.append((self._arrival_ns[session], *columns))
            written += 1
            history.append(self._without_thinking(answer) if self.spec.thinking == "stripped" else answer)
        return written

    def table(self, num_requests: int | None) -> tuple[RequestTable, Sessions]:
        """All that was written, or the first `num_requests` of it."""
        rows = self.rows[:num_requests]
        arrival, prompt, output, limit, visible, follows, think, answer = np.array(rows, np.int64).T
        requests = RequestTable.build(
            arrival,
            prompt,
            output,
            max_tokens=limit,
            visible_token=visible,
            priority=np.full(len(rows), self.spec.priority),
            content=PromptContent.build(self._segments[: len(rows)], answer),
        )
        return requests, Sessions(follows, think)

    def _calls(self, session: int) -> list[_Call]:
        """What is sent in a session, one after another."""
        spec, rng = self.spec, np.random.default_rng(np.random.SeedSequence([self._seed, crc32(b"session"), session]))
        calls = []
        for turn in range(min(int(rng.geometric(1 / spec.mean_turns)), spec.max_turns)):
            calls.append(_Call(True, round(float(rng.exponential(spec.think_s)) * NS_PER_S) if turn else 0))
            tools = int(rng.geometric(1 / (1 + spec.tool_calls_per_turn))) - 1
            calls += [_Call(False, round(spec.tool_s * NS_PER_S))] * min(tools, MOST_TOOL_CALLS)
        return calls

    def _lengths_of(self, place: int) -> LengthTable:
        """Of the request at one place of every session."""
        while len(self._lengths) <= place:
            name = f"session/{len(self._lengths)}"
            self._lengths.append(self.spec.lengths.sample(Scores.draw(len(self._arrival_ns), self._seed, name)))
        return self._lengths[place]

    @staticmethod
    def _without_thinking(said: _Said) -> _Said:
        return said if said.visible_id == NOBODY else _Said(said.visible_id, said.visible_tokens)

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1
