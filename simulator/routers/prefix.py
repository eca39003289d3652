"""Prompts that begin alike go where their beginning is cached already."""

from __future__ import annotations

from collections.abc import Sequence as Replicas
from hashlib import blake2b

from simulator.routers.base import Ask, Load

BOUND = 1.25
"""No replica gets more than so many times its even share of the unfinished requests."""


class PrefixAffine:
    """The replica that is first in its prefix's own order, unless it is overloaded: then the next one in that order.

    Source: rendezvous hashing (Thaler and Ravishankar, IEEE/ACM Transactions on Networking 6(1), 1998) under bounded loads (Mirrokni,
    Thorup and Zadimoghaddam, SODA 2018). When a replica comes or goes, only its own prefixes move.
    """

    def __init__(self, seed: int) -> None:
        del seed
        self._scores: dict[tuple[int, int], bytes] = {}

    def route(self, replicas: Replicas[Load], ask: Ask) -> int:
        outstanding = [replica.outstanding for replica in replicas]
        most = BOUND * (sum(outstanding) + 1) / len(replicas)
        places = sorted(range(len(replicas)), key=lambda place: self._score(ask.prefix, replicas[place].index))
        # Not all can be above their even share, so one is free.
        return next(place for place in places if outstanding[place] < most)

    def _score(self, prefix: int, index: int) -> bytes:
        key = prefix, index
        if key not in self._scores:
            self._scores[key] = blake2b(f"{prefix}/{index}".encode(), digest_size=8).digest()
        return self._scores[key]
