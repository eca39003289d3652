"""One point of a grid, what the engine can hold, and the order from coarse to fine."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, TypeVar, cast

Kind = Literal["decode", "prefill", "mixed", "sampling", "energy", "sustained", "shared"]
Shape = Literal["equal", "spread", "one_long", "traffic"]

T = TypeVar("T")

_NAME = re.compile(
    r"(?P<kind>\w+) ((?P<batch>\d+)×(?P<context>\d+)( (?P<shape>\w+))?)?\+?((?P<num_chunks>\d+)×(?P<chunk>\d+)@(?P<start>\d+))?"
)

LIFE_STEPS, ENERGY_LIFE_STEPS = 64, 1024
"""Steps that a sequence may live while its point is measured."""
GOLDEN = (math.sqrt(5) - 1) / 2
"""Multiples of it, without their whole parts, order things as if by chance, and the same way every time."""


@dataclass(frozen=True)
class Limits:
    """What the engine can hold."""

    max_model_len: int
    max_num_seqs: int
    max_num_scheduled_tokens: int
    usable_blocks: int
    block_size: int
    tokens_per_decode: int = 1
    """1 + the drafts of a verify step."""
    graph_sizes: tuple[int, ...] = ()
    """Captured CUDA-graph sizes."""
    max_sampled_tokens: int | None = None
    """Positions whose logits there is memory for, where vLLM itself does not see to that."""

    def fits(self, contexts: Iterable[int], steps: int) -> bool:
        """Whether sequences of these contexts can run together for so many steps."""
        blocks = num_seqs = 0
        for context in contexts:
            end = context + steps * self.tokens_per_decode
            if end > self.max_model_len:
                return False
            blocks += -(-end // self.block_size)
            num_seqs += 1
        return blocks <= self.usable_blocks and num_seqs <= self.max_num_seqs


@dataclass(frozen=True)
class Point:
    """One batch: `batch` sequences decoding around `context`, and `num_chunks` prompts of which `chunk` tokens follow `start`.

    Of kind `shared`, the chunks are heads that the sequences have before contexts of their own, each head as many sequences.
    """

    kind: Kind
    batch: int = 0
    context: int = 0
    shape: Shape = "equal"
    num_chunks: int = 0
    chunk: int = 0
    start: int = 0

    @property
    def name(self) -> str:
        """Also its key in the file of measured points."""
        shape = "" if self.shape == "equal" else f" {self.shape}"
        decoding = f"{self.batch}×{self.context}{shape}" if self.batch else ""
        chunks = f"{self.num_chunks}×{self.chunk}@{self.start}" if self.num_chunks else ""
        return f"{self.kind} {'+'.join(part for part in (decoding, chunks) if part)}"

    @classmethod
    def parse(cls, name: str) -> Point:
        """The point of that name.

        Raises:
            ValueError: there is none.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{name}: no point of a grid")
        batch, context, num_chunks, chunk, start = (int(match[part] or 0) for part in ("batch", "context", "num_chunks", "chunk", "start"))
        return cls(cast("Kind", match["kind"]), batch, context, cast("Shape", match["shape"] or "equal"), num_chunks, chunk, start)

    @property
    def life_steps(self) -> int:
        """Steps that its sequences must be able to live."""
        return ENERGY_LIFE_STEPS if self.kind in ("energy", "sustained") else LIFE_STEPS

    @property
    def contexts(self) -> list[int]:
        """Context of each decoding sequence, in the order in which the engine has them.

        All the same; spread geometrically over a factor of 16, the longest first; one long among short ones (older profiles have
        such points); or as in traffic: log-normal (sigma 1), the longest `context`, in no order.
        """
        if self.shape == "traffic":
            sorted_ranks = sorted(range(self.batch), key=lambda i: i * GOLDEN % 1)
            quantiles = [NormalDist().inv_cdf((rank + 0.5) / self.batch) for rank in sorted_ranks]
            return [max(round(self.context * math.exp(z - max(quantiles))), 16) for z in quantiles]
        if self.shape == "one_long":
            return [self.context] + [max(self.context // 16, 16)] * (self.batch - 1)
        if self.shape == "spread" and self.batch > 1:
            return [max(round(self.context / 16 ** (i / (self.batch - 1))), 16) for i in range(self.batch)]
        return [self.context] * self.batch

    def possible(self, limits: Limits) -> bool:
        """Whether the engine can run it as one step."""
        if self.kind == "shared":
            return self.num_chunks <= self.batch and limits.fits([self.chunk + context for context in self.contexts], self.life_steps)
        chunk_tokens = self.num_chunks * self.chunk
        tokens = self.batch * limits.tokens_per_decode + chunk_tokens
        sequences = [*self.contexts, *([self.start + self.chunk] * self.num_chunks)]
        sampled = self.batch * limits.tokens_per_decode + self.num_chunks
        has_memory = limits.max_sampled_tokens is None or sampled <= limits.max_sampled_tokens
        return has_memory and tokens <= limits.max_num_scheduled_tokens and limits.fits(sequences, self.life_steps)


def ranks(values: Sequence[T]) -> list[tuple[T, int]]:
    """Each value with its rank in a bisection: the ends first (0), then the middle (1), the quarters (2), and so on."""
    last = len(values) - 1
    if last < 1:
        return [(value, 0) for value in values]
    depth = math.ceil(math.log2(last)) if last > 1 else 0
    ranks: dict[int, int] = {}
    for rank in range(depth + 1):
        for i in range(2**rank + 1):
            ranks.setdefault(round(i * last / 2**rank), rank)
    return [(value, ranks.get(i, depth + 1)) for i, value in enumerate(values)]
