"""What prompts have in common, by name: no token ids, only which stretches of tokens are the same."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.errors import UserError

Int64 = NDArray[np.int64]

NOBODY = -1
"""Content that no other request has."""

_BRANCH_BITS = 32
"""Blocks of one branch at most, as a power of two: keys of different branches never meet."""


@dataclass(frozen=True, eq=False)
class PromptContent:
    """The heads of prompts as segments, in CSR form; what a prompt has beyond its segments is the request's alone.

    Tokens of one content id are the same tokens, from its first on: two segments of one id have the shorter one's length in common,
    where all before them is the same, too. The same text must be cut into the same segments wherever it appears.
    """

    offsets: Int64
    """int64[n + 1]: the segments of request i are those from `offsets[i]` to before `offsets[i + 1]`."""
    content_id: Int64
    """int64[m], not negative."""
    tokens: Int64
    """int64[m], at least 1."""
    answer_id: Int64
    """int64[n]: content id of the answer where a later prompt repeats it, which is sent after the answer; `NOBODY` else."""

    def __len__(self) -> int:
        return len(self.answer_id)

    @classmethod
    def build(cls, segments: list[list[tuple[int, int]]], answer_id: Int64 | None = None) -> PromptContent:
        """From each request's list of (content id, tokens); segments without tokens are left out."""
        kept = [[segment for segment in row if segment[1] > 0] for row in segments]
        flat = np.array([segment for row in kept for segment in row], np.int64).reshape(-1, 2)
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in kept])]).astype(np.int64)
        answers = np.full(len(kept), NOBODY, np.int64) if answer_id is None else np.asarray(answer_id, np.int64)
        return cls(offsets, flat[:, 0].copy(), flat[:, 1].copy(), answers)

    def take(self, rows: Int64 | NDArray[np.bool_] | slice) -> PromptContent:
        """The given requests' contents, in the given order."""
        chosen = np.arange(len(self))[rows]
        counts = np.diff(self.offsets)[chosen]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        at = np.repeat(self.offsets[chosen] - offsets[:-1], counts) + np.arange(offsets[-1])
        return PromptContent(offsets, self.content_id[at], self.tokens[at], self.answer_id[chosen])

    def head_tokens(self) -> Int64:
        """int64[n]: tokens of each request's segments together."""
        total = np.concatenate([[0], np.cumsum(self.tokens)])
        heads: Int64 = total[self.offsets[1:]] - total[self.offsets[:-1]]
        return heads

    def check(self, prompt_tokens: Int64) -> None:
        """Holds it against the prompts.

        Raises:
            UserError: segments are longer than their prompt, or an answer is repeated whose prompt is not.
        """
        if len(self) != len(prompt_tokens):
            raise UserError(f"requests: content has {len(self)} rows, prompt_tokens has {len(prompt_tokens)}")
        heads = self.head_tokens()
        if (heads > prompt_tokens).any():
            row = int((heads > prompt_tokens).argmax())
            raise UserError(f"requests: the shared head has {heads[row]} tokens in row {row}, its prompt {prompt_tokens[row]}")
        lone = (self.answer_id != NOBODY) & (heads < prompt_tokens)
        if lone.any():
            raise UserError(f"requests: row {int(lone.argmax())} has an answer_id, but its prompt is not all in segments")


class Content(NamedTuple):
    """A sequence's blocks as keys: two blocks are the same, all before them included, if their keys are.

    Stands for vLLM's chained block hashes (0.26 `v1/core/kv_cache_utils.py` `hash_block_tokens`).
    """

    starts: tuple[int, ...]
    """First token of each branch. A branch has the blocks that end within one segment, whatever the size of a block."""
    bases: tuple[int, ...]
    """Of each branch: what the index of a block is added to."""
    shared_tokens: int
    """Tokens from here on no other sequence can have."""

    def keys(self, first: int, end: int, block_size: int) -> Iterator[int]:
        """The keys of the blocks from `first` to before `end`."""
        starts = self.starts
        for index, base in enumerate(self.bases):
            last = starts[index + 1] // block_size if index + 1 < len(starts) else end
            yield from range(base + max(first, starts[index] // block_size), base + min(end, last))


def private(row: int) -> Content:
    """The content of a request that shares nothing."""
    return Content((0,), (_private_base(row),), 0)


def _private_base(row: int) -> int:
    return -(row + 1) << _BRANCH_BITS


ENDLESS_TOKENS = 1 << _BRANCH_BITS
"""More than any sequence has."""


class Contents:
    """Gives what is sent its `Content`."""

    def __init__(self, content: PromptContent, prompt_tokens: Int64 | None = None) -> None:
        """`prompt_tokens`: int64[n], where a request may be sent again, with the same prompt; None: each is sent once."""
        self._offsets = content.offsets.tolist()
        self._segments = list(zip(content.content_id.tolist(), content.tokens.tolist(), strict=True))
        self._prompt_tokens = None if prompt_tokens is None else prompt_tokens.tolist()
        _, place, times = np.unique(np.concatenate([content.content_id, content.answer_id]), return_inverse=True, return_counts=True)
        self._is_lone = (times[place] == 1).tolist()
        """Of each segment, then of each answer: whether its content is nowhere else."""
        self._answer_id = content.answer_id.tolist()
        self._branches: dict[tuple[int, int, Hashable], int] = {}
        """Number of each branch by (branch before it, tokens of that one, content)."""
        self._answers: dict[int, Hashable] = {}
        """What later prompts repeat where a request was sent again: the answer to its last attempt, by `answer_id`."""

    def of(self, request: int, row: int | None = None) -> Content:
        """The content of a request, sent for the first time or (as `row`) again: its prompt is the same, its answer another one."""
        branch, tokens, starts, bases = -1, 0, [0], []
        sent_once = self._prompt_tokens is None
        answer_id = NOBODY if self._is_lone[len(self._segments) + request] else self._answer_id[request]
        for index in range(self._offsets[request], self._offsets[request + 1]):
            if sent_once and self._is_lone[index]:
                # Content that occurs once: all that follows it is this request's alone, too.
                answer_id = NOBODY
                break
            content_id, length = self._segments[index]
            branch, tokens = self._branch(branch, tokens, self._answers.get(content_id, content_id)), length
            bases.append(branch << _BRANCH_BITS)
            starts.append(starts[-1] + length)
        if self._prompt_tokens is not None and starts[-1] < self._prompt_tokens[request]:
            branch, tokens = self._branch(branch, tokens, ("prompt of", request)), self._prompt_tokens[request] - starts[-1]
            bases.append(branch << _BRANCH_BITS)
            starts.append(starts[-1] + tokens)
        if answer_id == NOBODY:
            bases.append(_private_base(request if row is None else row))
            return Content(tuple(starts), tuple(bases), starts[-1])
        if row is not None and row != request:
            self._answers[answer_id] = ("answer to", row)
        bases.append(self._branch(branch, tokens, self._answers.get(answer_id, answer_id)) << _BRANCH_BITS)
        return Content(tuple(starts), tuple(bases), ENDLESS_TOKENS)

    def _branch(self, before: int, tokens: int, content: Hashable) -> int:
        return self._branches.setdefault((before, tokens, content), len(self._branches))
