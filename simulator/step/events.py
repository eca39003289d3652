"""Instants of the simulation, totally ordered: by time, then by kind, then by who it concerns."""

from __future__ import annotations

import simpy

ARRIVAL = 0
SAMPLE = 1 << 30
CONTROL = SAMPLE + 1
"""Whoever decides by the state of an instant: after its step ends."""
STEP_END = 2
"""Plus the index of the replica."""


class Instant(simpy.Event):
    """An event that happens at `at_ns`. SimPy's own timeouts have no priority to order those of one instant."""

    def __init__(self, env: simpy.Environment, at_ns: int, priority: int) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        env.schedule(self, priority, at_ns - env.now)  # type: ignore[arg-type]
