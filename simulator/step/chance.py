"""Chance that belongs to a step: it follows from which step of which replica it is, so that no order of drawing can change it."""

from __future__ import annotations

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def chance(seed: int, replica: int, step: int) -> float:
    """A number of [0, 1), the same for the same step: the mixing function SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    return _mixed(_mixed(_mixed(seed) + replica) + step) / 2.0**64


def _mixed(state: int) -> int:
    z = (state + _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
