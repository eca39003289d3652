"""Prompts go where what they begin with is likely to be cached already."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Replicas

from simulator.routers.base import Ask, Load

BOUND = 1.25
"""No replica gets more than so many times its even share of the unfinished requests."""
BLOCK_TOKENS = 16
"""Prompts are compared in blocks of so many tokens."""
MOST_BLOCKS = 31_250
"""Remembered of each replica: half a million tokens, about what the KV cache of one GPU holds."""


class PrefixAffine:
    """The replica that was sent the longest beginning of this prompt before, of several the one with the fewest unfinished requests.

    So where nothing was sent before, that is the least loaded one. A replica with more than `BOUND` times its even share of the
    unfinished requests is passed over: else one system prompt, shared by all, would send everything to one place. The router goes by
    its own memory of what it sent, the latest `MOST_BLOCKS` blocks a replica, not by what engines hold: evictions and answers are
    unknown to it.

    Source: the approximate prefix-cache index of llm-d's and the Gateway API inference extension's endpoint picker (longest match of
    hashed 16-token blocks, LRU a server), which weighs matches against load where this has a bound (Mirrokni, Thorup and
    Zadimoghaddam, consistent hashing with bounded loads, SODA 2018); production-stack's `prefixaware` is the same without any.
    """

    def __init__(self, seed: int) -> None:
        del seed
        self._sent: dict[int, OrderedDict[int, None]] = {}
        """By replica, the keys of the blocks it was sent, the latest last."""

    def route(self, replicas: Replicas[Load], ask: Ask) -> int:
        keys = self._keys(ask)
        most = BOUND * (sum(replica.outstanding for replica in replicas) + 1) / len(replicas)
        # Not all can be above their even share, so one is free.
        free = [place for place, replica in enumerate(replicas) if replica.outstanding < most]
        place = min(free, key=lambda place: (-self._matched(replicas[place].index, keys), replicas[place].outstanding))
        self._remember(replicas[place].index, keys)
        return place

    @staticmethod
    def _keys(ask: Ask) -> list[int]:
        if ask.content is None:
            return []
        # What nobody else has, nobody will ask for.
        tokens = min(ask.prompt_tokens, ask.content.shared_tokens)
        return list(ask.content.keys(0, tokens // BLOCK_TOKENS, BLOCK_TOKENS))

    def _matched(self, index: int, keys: list[int]) -> int:
        sent = self._sent.get(index)
        if not sent:
            return 0
        return next((place for place, key in enumerate(keys) if key not in sent), len(keys))

    def _remember(self, index: int, keys: list[int]) -> None:
        sent = self._sent.setdefault(index, OrderedDict())
        # The beginning is used last, so that the end of a prompt is forgotten first.
        for key in reversed(keys):
            sent[key] = None
            sent.move_to_end(key)
        while len(sent) > MOST_BLOCKS:
            sent.popitem(last=False)
