"""The composition of a step, and the terms that a cost model makes of it. One definition for the fit and the simulator."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from functools import reduce
from itertools import pairwise
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.engine import GraphMode

Column = Any
"""A number, or an array of shape (k,) with one entry a step."""


class StepFeatures(NamedTuple):
    """The composition of one engine step (numbers), or of k steps (columns of shape (k,); constants may stay numbers)."""

    prefill_seqs: Column = 0
    """Sequences with a chunk of prompt (or of recomputed tokens) in the step."""
    prefill_tokens: Column = 0
    """Tokens of those chunks."""
    prefill_context_tokens: Column = 0
    """Sum of the chunks' end positions: keys and values read."""
    prefill_attention_tokens: Column = 0
    """Pairs of a chunk's token and a token that it attends to, itself and those before it: attention work."""
    decode_seqs: Column = 0
    """Sequences that decode."""
    decode_context_tokens: Column = 0
    """Sum of their contexts, the new token included, less what is saved where they share (`Attention.shared_read`)."""
    decode_context_max_tokens: Column = 0
    """The longest of those contexts."""
    verify_tokens: Column = 0
    """Draft tokens verified beside the one token a decoding sequence always has."""
    padded_tokens: Column = 0
    """Tokens of the batch after CUDA-graph padding."""
    graph_mode: Column = GraphMode.FULL
    """`GraphMode` of the launch."""
    decode_idle_tokens: Column = 0
    """What multiprocessors could have read of the decodes' contexts while they waited for the last one (`artifacts/attention.py`)."""
    decode_in_step_seqs: Column = 0
    """Decoding sequences whose neighbour in the batch is nearly as long: most of a profile's, hardly any of traffic's, where it is 0."""

    @property
    def tokens(self) -> Column:
        """Tokens of the batch before padding."""
        return self.prefill_tokens + self.decode_seqs + self.verify_tokens

    @property
    def prefill_started_tokens(self) -> Column:
        """Tokens computed before the chunks: the sum of their start positions."""
        return self.prefill_context_tokens - self.prefill_tokens

    @property
    def sampled_tokens(self) -> Column:
        """Positions whose logits are computed: one a sequence, chunks that do not end their prompt included, and one a draft."""
        return self.prefill_seqs + self.decode_seqs + self.verify_tokens


MOVING = frozenset({"decode_context_tokens", "decode_context_max_tokens", "decode_idle_tokens"})
"""Features that change from one step of a steady decode to the next; all others stay."""

TABLED = frozenset({"padded_tokens", "sampled_tokens"})
"""Features with tables of times: long sums over few values."""

RATED = ["prefill_started_tokens", "prefill_tokens"]
"""Factors of terms that are 0 in most steps: only prompts that were begun earlier have them."""

_FACTOR = re.compile(r"(?P<name>[a-z_]+)(\[(?P<low>\d+)?:((?P<peak>\d+):)?(?P<high>\d+)?\])?")
_NAMES = (*StepFeatures._fields, "tokens", "prefill_started_tokens", "sampled_tokens", "one")


class Factor(NamedTuple):
    """One feature, or the part of it between two knots: `padded_tokens[64:128]` is `clip(x, 64, 128) − 64`.

    With three knots, a share: `padded_tokens[64:128:136]` is 1 at 128 and falls to 0 at 64 and 136. Neighbouring shares add up to 1,
    so their coefficients are a table of times with straight lines between its entries. Without an outer knot it stays 1 on that side.
    """

    name: str
    low: int | None
    high: int | None
    peak: int | None = None

    @classmethod
    def parse(cls, text: str) -> Factor:
        match = _FACTOR.fullmatch(text)
        if match is None or match["name"] not in _NAMES:
            raise ValueError(f"term {text!r}: expected NAME, NAME[low:high] or NAME[low:peak:high] with NAME one of {', '.join(_NAMES)}")
        low, high, peak = (None if knot is None else int(knot) for knot in (match["low"], match["high"], match["peak"]))
        rising = [0 if low is None and peak is None else low, peak, high]
        knots = [knot for knot in rising if knot is not None]
        if any(upper <= lower for lower, upper in pairwise(knots)):
            raise ValueError(f"term {text!r}: its upper knot must lie above its lower one")
        return cls(match["name"], low, high, peak)

    def reader(self) -> Callable[[StepFeatures], Column]:
        """What reads the factor's value, a number or shape (k,), from features."""
        if self.name == "one":
            return lambda _: 1
        read = attrgetter(self.name)
        if self.peak is not None:
            return self._share(read, self.peak)
        if self.low is self.high is None:
            return read
        low = 0 if self.low is None else self.low
        high = sys.maxsize if self.high is None else self.high

        def between_knots(features: StepFeatures) -> Column:
            x = read(features)
            # The same values from numbers and from arrays: a stretch of k steps must cost what k single steps do.
            if isinstance(x, np.ndarray):
                return np.minimum(np.maximum(x, low), high) - low
            return min(x, high) - low if x > low else 0

        return between_knots

    def _share(self, read: Callable[[StepFeatures], Column], peak: int) -> Callable[[StepFeatures], Column]:
        rise = None if self.low is None else peak - self.low
        fall = None if self.high is None else self.high - peak

        def share(features: StepFeatures) -> Column:
            off = read(features) - peak
            up = 1.0 if rise is None else 1.0 + off / rise
            down = 1.0 if fall is None else 1.0 - off / fall
            if isinstance(off, np.ndarray):
                return np.maximum(np.minimum(np.minimum(up, down), 1.0), 0.0)
            return max(min(up, down, 1.0), 0.0)

        return share


class Term:
    """A product of factors, written `decode_seqs*decode_context_max_tokens[4096:]`: a column of the fit's design matrix."""

    def __init__(self, text: str) -> None:
        self.text = text
        factors = [Factor.parse(part) for part in text.split("*")]
        self.moves = any(factor.name in MOVING for factor in factors)
        """Whether the value changes within a steady decode."""
        names = {factor.name for factor in factors} - {"one"}
        self.table = names.pop() if len(names) == 1 and names <= TABLED else None
        """The feature, one of `TABLED`, that alone decides the value; None: there is no such one."""
        self.rate = (
            factors[1].reader() if [factor.name for factor in factors] == RATED and factors[0] == Factor(RATED[0], None, None) else None
        )
        """What a token before the chunks counts for, which only their size decides; None: the term is none of tokens before the chunks."""
        self.of = reduce(_product, (factor.reader() for factor in factors))
        """Value of the term, from `StepFeatures`: a number, or shape (k,)."""


def _product(a: Callable[[StepFeatures], Column], b: Callable[[StepFeatures], Column]) -> Callable[[StepFeatures], Column]:
    return lambda features: a(features) * b(features)


def design_matrix(terms: Iterable[str], features: StepFeatures) -> NDArray[np.float64]:
    """float64[k, number of terms]: what the fit multiplies with its coefficients."""
    k = np.broadcast(*features).size
    return np.column_stack([np.broadcast_to(Term(text).of(features), k) for text in terms]).astype(np.float64)
