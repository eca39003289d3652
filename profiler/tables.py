"""A table of times by batch size: what matrix products cost, which follows no formula."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

TILE = 128
"""Rows of a matrix product that one thread block computes: beyond a multiple of it, another row of blocks runs."""
NEXT = 8
"""The first batch size beyond a multiple of `TILE` that vLLM pads to."""
TILES = 4
"""Tiles up to which the table has an entry on both sides of each multiple."""
NEAR = 0.01
"""Sizes that differ by less share an entry."""
LARGEST_GRAPH = 512
"""Batches beyond vLLM's largest captured size are not padded: they come in all sizes."""
PIT = 1.1

WITHIN_TILE, ACROSS_TILES, PROPORTIONAL = 0.3, 0.2, 0.3
"""How much entries that no step tells apart are held to one another; 1 weighs a relative difference of 1 like one measured step's."""

Prior = tuple[tuple[str, float], ...]
"""A weighted sum of coefficients that should be 0: (term, weight) of each."""


@dataclass(frozen=True)
class Table:
    """Terms whose coefficients are times at the sizes `knots`, with straight lines between them.

    Neighbouring entries within a tile are expected to agree, neighbouring tiles a little, and large sizes to be in proportion:
    this fills entries that were not measured. `pits` are captured sizes with a kernel much slower than their neighbours',
    which add to the line between those.
    """

    knots: tuple[int, ...]
    pits: tuple[int, ...]
    about_ns: tuple[float, ...]
    """Times of about the entries' size, for the weights of the priors."""

    @classmethod
    def of(cls, sizes: Int64, times_ns: Float64, pits: Iterable[int] = ()) -> Table:
        """A table for steps of these padded sizes, int64[k], and times, float64[k]."""
        pits = tuple(pits)
        rows = ~np.isin(sizes, pits)
        measured = np.unique(sizes[rows])
        knots = _knots(measured.tolist())
        least = np.array([times_ns[rows][sizes[rows] == size].min() for size in measured])
        # The quickest step of this or any larger size.
        rising = np.minimum.accumulate(least[::-1])[::-1]
        return cls(tuple(knots), pits, tuple(np.interp(knots, measured, rising).tolist()))

    @property
    def entries(self) -> tuple[str, ...]:
        """A term for each knot."""
        ends: list[int | str] = ["", *self.knots, ""]
        return tuple(f"padded_tokens[{low}:{at}:{high}]" for low, at, high in zip(ends, self.knots, ends[2:], strict=False))

    @property
    def terms(self) -> tuple[str, ...]:
        """Entries, what goes on beyond the last of them, and pits."""
        return (*self.entries, self._beyond, *(f"padded_tokens[{size - 1}:{size}:{size + 1}]" for size in self.pits))

    @property
    def priors(self) -> tuple[Prior, ...]:
        """What is expected of the coefficients of `terms`."""
        rows: list[Prior] = []
        for i, (low, high) in enumerate(zip(self.knots, self.knots[1:], strict=False)):
            if high > TILE * TILES + NEXT:
                weight, slope = PROPORTIONAL, high / low
            else:
                weight, slope = WITHIN_TILE if _tile(low) == _tile(high) else ACROSS_TILES, 1.0
            weight /= self.about_ns[i]
            rows.append(((self.entries[i], -weight * slope), (self.entries[i + 1], weight)))
        last_ns = self.about_ns[-1]
        rows.append(((self._beyond, self.knots[-1] / last_ns), (self.entries[-1], -1 / last_ns)))
        return tuple(rows)

    @property
    def _beyond(self) -> str:
        return f"padded_tokens[{self.knots[-1]}:]"

    def find_pits(self, coefficients: Sequence[float], sizes: Int64) -> tuple[int, ...]:
        """Captured sizes, of those measured, whose fitted entry lies far above both measured neighbours'."""
        measured = [i for i, knot in enumerate(self.knots) if knot in set(sizes.tolist()) and knot <= LARGEST_GRAPH]
        triples = zip(measured, measured[1:], measured[2:], strict=False)
        return tuple(self.knots[i] for low, i, high in triples if coefficients[i] > PIT * max(coefficients[low], coefficients[high]))


def _knots(measured: list[int]) -> list[int]:
    borders = {border for i in range(1, TILES + 1) for border in (TILE * i, TILE * i + NEXT)}
    wanted = sorted({*measured, *(border for border in borders if measured[0] < border < measured[-1])})
    knots: list[int] = []
    for size in wanted:
        near = bool(knots) and size - knots[-1] < max(NEXT, NEAR * size) and _tile(size) == _tile(knots[-1])
        if not near or size == wanted[-1]:
            knots.append(size)
    return knots


def _tile(size: int) -> int:
    return (size - 1) // TILE
