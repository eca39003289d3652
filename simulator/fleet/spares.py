"""How many nodes to own, so that enough of them are up."""

from __future__ import annotations

from math import ceil, exp

from pydantic import Field

from simulator.fleet.fleet import GPUS_PER_NODE
from simulator.workload.base import Spec


class Spares(Spec):
    """Nodes of eight GPUs that fail by themselves, for exponential times."""

    mtbf_s: float = Field(gt=0)
    """Mean time between two failures of one node that is up."""
    mttr_s: float = Field(gt=0)
    """Mean time until it is there again; its engines start then."""
    engine_start_s: float = Field(0.0, ge=0)
    at_least: float = Field(0.999, gt=0, lt=1)
    """Share of the time in which the GPUs of the answer must be up."""

    @property
    def node_availability(self) -> float:
        """Share of the time in which a node serves: a start that a failure interrupts begins anew."""
        return self.mtbf_s * exp(-self.engine_start_s / self.mtbf_s) / (self.mtbf_s + self.mttr_s)

    def nodes(self, gpus: int) -> int:
        """Nodes to own for `gpus` GPUs to be up, independently of each other."""
        needed = owned = ceil(gpus / GPUS_PER_NODE)
        while self._up(needed, owned) < self.at_least:
            owned += 1
        return owned

    def _up(self, needed: int, owned: int) -> float:
        """Share of the time in which at least `needed` nodes of those owned are up."""
        from scipy.special import bdtrc

        return float(bdtrc(needed - 1, owned, self.node_availability))

    def describe(self, gpus: int) -> str:
        """The answer in a sentence."""
        needed, owned = ceil(gpus / GPUS_PER_NODE), self.nodes(gpus)
        up = self._up(needed, owned)
        return (
            f"own {owned} nodes of {GPUS_PER_NODE} GPUs: {needed} or more, as many as needed, then serve {up:.3%} of the time (asked for"
            f" {self.at_least:.3%}; a node serves {self.node_availability:.2%} of it)"
        )
