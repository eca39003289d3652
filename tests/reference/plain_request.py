"""What the plain engine holds of a request, and of a step."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field


@dataclass(eq=False)
class Request:
    """A request as the engine core holds it."""

    row: int
    prompt_tokens: int
    output_tokens: int
    """The token with this number is the end of sequence, unless `max_tokens` comes first."""
    max_tokens: int
    priority: int
    arrival_ns: int
    predicted_tokens: int
    max_model_len: int
    verifies: bool
    """Whether its steps may verify drafts."""
    status: str = "waiting"
    all_tokens: list[Hashable] = field(default_factory=list)
    """With prefix caching: something for each token, equal for equal tokens."""
    answer: Hashable = None
    block_hashes: list[int] = field(default_factory=list)
    num_output_tokens: int = 0
    num_computed_tokens: int = 0
    num_output_placeholders: int = 0
    num_spec_tokens: int = 0
    """Drafts that wait to be verified (`spec_token_ids`)."""
    is_prefill_chunk: bool = True
    blocks: list[int] = field(default_factory=list)
    preemptions: int = 0
    cached_tokens: int = 0
    scheduled_ns: int = -1
    finish_ns: int = -1
    token_ns: list[int] = field(default_factory=list)
    """When the result with each token was handled."""
    client_ns: list[int] = field(default_factory=list)
    """When the client got each token."""
    chunk_ns: list[int] = field(default_factory=list)
    """The same, once for all tokens of one result."""

    @property
    def num_tokens(self) -> int:
        return self.prompt_tokens + self.num_output_tokens

    @property
    def planned_tokens(self) -> int:
        """Output tokens that steps scheduled so far bring; with drafts, which may be rejected, those that results have brought."""
        return self.num_output_tokens + (0 if self.verifies else self.num_output_placeholders)

    @property
    def expected_tokens(self) -> int:
        """Output tokens to expect in all: what is predicted, twice as much once it is passed, and so on."""
        expected = self.predicted_tokens
        while expected <= self.planned_tokens:
            expected *= 2
        return min(expected, self.max_tokens, self.max_model_len - self.prompt_tokens)

    @property
    def remaining_tokens(self) -> int:
        """Output tokens to expect from now on."""
        return max(self.expected_tokens - self.planned_tokens, 0)


@dataclass
class Row:
    """One request in one step."""

    request: Request
    tokens: int
    end: int
    """Position after the last of the tokens."""
    prefill: bool
    emits: bool = False
    drafts: int = 0
    """Of the tokens, scheduled drafts."""
    padding: bool = False
    """The drafts are none: they make up the length of a decode."""


@dataclass
class Step:
    """One scheduled batch."""

    rows: list[Row] = field(default_factory=list)
    preempted: list[int] = field(default_factory=list)
    admitted: list[int] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    """The running list when the batch was fixed."""
    held_blocks: int = 0
    gpu_end_ns: int = 0
    end_ns: int = -1
