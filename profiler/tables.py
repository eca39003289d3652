"""A table of times by batch size: what matrix products cost, which follows no formula, but a shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

TILES = {64: 256, 128: 2048, 256: 1 << 20}
"""Rows of a matrix product that one thread block computes: beyond a multiple, another row of blocks runs. With each, the batch size up to
which such a step shows: beyond, it is a tenth of a step's time and less."""
TILE, LARGEST_TILE = 128, 256
NEXT = 8
"""Captured sizes lie at least this far apart: the first beyond a multiple of a tile, and what shares an entry."""
LARGEST_GRAPH = 512
"""Batches beyond vLLM's largest captured size are not padded: they come in all sizes."""
PIT = 1.1
STRAIGHT = 0.004
"""An entry that nobody measured, and that lies so close to the line between its neighbours, is left out."""

NEIGHBOUR, SHAPE = 0.25, 0.2
"""How much an entry's relative distance from the shape is held to its neighbour's, and to none; 1 weighs it like one measured step's."""
NEARBY, USUAL, BORDER, FAR = 0.01, 0.1, 0.3, 1.0
"""How different neighbours are, as the logarithm of their ratio: at least; where `NEIGHBOUR` is meant for; in different tiles; at most."""

Prior = tuple[tuple[str, float], ...]
"""A weighted sum of coefficients that should be 0: (term, weight) of each."""


def _beyond(knot: int) -> Callable[[Float64], Float64]:
    return lambda sizes: np.maximum(sizes - knot, 0.0)


def _rounded(tile: int) -> Callable[[Float64], Float64]:
    return lambda sizes: np.ceil(sizes / tile) * tile


def _later(tile: int) -> Callable[[Float64], Float64]:
    return lambda sizes: np.where(sizes > TILE, np.ceil(sizes / tile) * tile - TILE, 0.0)


def _idle(tile: int) -> Callable[[Float64], Float64]:
    return lambda sizes: np.where(sizes > TILE, np.ceil(sizes / tile) * tile - sizes, 0.0)


SHAPES: Mapping[str, Callable[[Float64], Float64]] = {
    "weights read": np.ones_like,
    "rows": lambda sizes: sizes,
    **{f"rows beyond {knot}": _beyond(knot) for knot in (64, 128, 256, 2048)},  # below, reading the weights takes longer than multiplying
    **{f"rows in whole tiles of {tile}": _rounded(tile) for tile in TILES},
    **{f"rows in later tiles of {tile}": _later(tile) for tile in TILES},
    **{f"idle rows of tiles of {tile}": _idle(tile) for tile in TILES},  # some kernels are slower where the last tile is not full
}
"""What a table looks like if nothing is measured but a few sizes: a sum of these functions of the batch size, fitted with the entries."""


@dataclass(frozen=True)
class Table:
    """Terms whose coefficients are times at the sizes `knots`, with straight lines between them.

    An entry's relative distance from the shape is expected to be that of its neighbours: this fills entries that were not measured.
    `pits` are sizes with a kernel much slower than their neighbours', which add to the line between those.
    """

    knots: tuple[int, ...]
    pits: tuple[int, ...]
    measured: frozenset[int]
    """Of the knots, those that a step was measured at."""
    about_ns: tuple[float, ...]
    """Times of about the entries' size, for the weights of the priors."""

    @classmethod
    def of(cls, sizes: Int64, times_ns: Float64, pits: Iterable[int] = (), without: Iterable[int] = ()) -> Table:
        """A table for steps of these padded sizes, int64[k], and times, float64[k]; knots in `without` are not needed."""
        pits = tuple(pits)
        rows = ~np.isin(sizes, pits)
        measured = np.unique(sizes[rows])
        knots = [knot for knot in _knots(measured.tolist()) if knot not in frozenset(without)]
        least = np.array([times_ns[rows][sizes[rows] == size].min() for size in measured])
        # The quickest step of this or any larger size.
        rising = np.minimum.accumulate(least[::-1])[::-1]
        return cls(tuple(knots), pits, frozenset(measured.tolist()), tuple(np.interp(knots, measured, rising).tolist()))

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
        """What is expected of the coefficients of `terms` and of `SHAPES`."""
        about, entries = np.array(self.about_ns), self.entries
        shapes = np.column_stack([of(np.array(self.knots, np.float64)) for of in SHAPES.values()]) / about[:, None]
        rows: list[Prior] = [self._row(shapes[i], ((entry, 1 / about[i]),), SHAPE) for i, entry in enumerate(entries)]
        for i, (low, high) in enumerate(pairwise(entries)):
            weight = NEIGHBOUR / math.sqrt(_apart(self.knots[i], self.knots[i + 1]) / USUAL)
            rows.append(self._row(shapes[i + 1] - shapes[i], ((high, 1 / about[i + 1]), (low, -1 / about[i])), weight))
        last = self.knots[-1]
        whole_tiles = np.array([1.0, 2.0]) * max(last // LARGEST_TILE, 1) * LARGEST_TILE
        slopes = np.array([np.diff(of(whole_tiles)).item() for of in SHAPES.values()]) * last / whole_tiles[0] / about[-1]
        rows.append(self._row(slopes, ((self._beyond, last / about[-1]),), 1.0))
        return tuple(rows)

    @staticmethod
    def _row(shapes: Float64, entries: Prior, weight: float) -> Prior:
        expected = ((name, -weight * float(value)) for name, value in zip(SHAPES, shapes, strict=True))
        return (*((term, weight * float(value)) for term, value in entries), *expected)

    @property
    def _beyond(self) -> str:
        return f"padded_tokens[{self.knots[-1]}:]"

    def pits_in(self, coefficients: Sequence[float]) -> tuple[int, ...]:
        """Captured sizes, of those measured, whose fitted entry lies far above both measured neighbours'."""
        measured = [i for i, knot in enumerate(self.knots) if knot in self.measured and knot <= LARGEST_GRAPH]
        triples = zip(measured, measured[1:], measured[2:], strict=False)
        return tuple(self.knots[i] for low, i, high in triples if coefficients[i] > PIT * max(coefficients[low], coefficients[high]))

    def straight_in(self, coefficients: Sequence[float]) -> tuple[int, ...]:
        """Knots that nobody measured and whose fitted entry lies on the line between its neighbours."""
        found, last = [], 0
        for i in range(1, len(self.knots) - 1):
            line = np.interp(self.knots[i], (self.knots[last], self.knots[i + 1]), (coefficients[last], coefficients[i + 1]))
            if self.knots[i] not in self.measured and abs(coefficients[i] - line) < STRAIGHT * line:
                found.append(self.knots[i])
            else:
                last = i
        return tuple(found)


def _knots(measured: list[int]) -> list[int]:
    borders = {border for tile in TILES for border in _borders(tile, measured[-1]) if measured[0] < border < measured[-1]}
    knots: list[int] = []
    for size in sorted({*measured, *borders}):
        near = bool(knots) and size - knots[-1] < NEXT and _tile(size) == _tile(knots[-1])
        if not near or size == measured[-1]:
            knots.append(size)
    return knots


def _borders(tile: int, largest: int) -> Iterable[int]:
    """The last size of each tile, and the first of the next."""
    for last in range(tile, min(largest, TILES[tile]) + 1, tile):
        yield last
        yield last + (NEXT if last < LARGEST_GRAPH else 1)


def _apart(low: int, high: int) -> float:
    """How different two sizes are: by their ratio, and by whether they take the same tiles."""
    ratio = math.log(high / low)
    return min(max(ratio, NEARBY if _tile(low) == _tile(high) else BORDER), FAR)


def _tile(size: int) -> int:
    return (size - 1) // TILE if size > TILE else -((TILE - size) // min(TILES))
