"""What a look at a replica tells."""

from __future__ import annotations

from typing import NamedTuple


class Snapshot(NamedTuple):
    """The state of a replica at an instant."""

    kv_blocks: int
    running: int
    waiting: int
    """Requests routed here that hold no seat, those still on their way included."""
    batch_tokens: int
