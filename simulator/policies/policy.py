"""The scheduling remedies that vLLM lacks, as a config names them. What vLLM has is in `engine`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from simulator.workload.base import Spec


class Policy(Spec):
    """What one engine does otherwise than vLLM; `vllm` everywhere: nothing."""

    queue: Literal["vllm", "shortest_predicted_first", "shortest_remaining_first"] = "vllm"
    """Who is admitted next: as `engine.scheduling_policy` says; whose output is expected to be the shortest; or of which the least is
    left, which differs for those who were preempted (`step/waiting.py`)."""
    aging_tokens_per_s: float = Field(0.0, ge=0)
    """Under these two, a request that waits counts as so much shorter for every second: nobody waits forever."""
    preemption: Literal["vllm", "longest_remaining", "most_blocks", "fewest_blocks"] = "vllm"
    """Who makes room where blocks run out: as vLLM; who is expected to need it the longest; who, but the first in line, has the most of it;
    or who loses the least progress (`policies/preemption.py`)."""
    admission: Literal["vllm", "predicted_kv"] = "vllm"
    """Whether requests wait until there is room for their whole expected outputs beside those of all who run (`policies/admission.py`)."""
    overcommit: float = Field(1.0, gt=0)
    """`predicted_kv` counts with so many times the pool: not all requests are at their longest at the same time."""

    @model_validator(mode="after")
    def _heard(self) -> Policy:
        if self.aging_tokens_per_s and self.queue == "vllm":
            raise ValueError("aging_tokens_per_s changes nothing: queue is vllm")
        if self.overcommit != 1.0 and self.admission == "vllm":
            raise ValueError("overcommit changes nothing: admission is vllm")
        return self

    @property
    def reads_predictions(self) -> bool:
        """Whether anything of it goes by predicted lengths."""
        return self.queue != "vllm" or self.preemption == "longest_remaining" or self.admission == "predicted_kv"

    def check(self, scheduling_policy: str, readers: Mapping[str, bool], *, foretold: bool) -> None:
        """Whether it goes together with the rest of a config.

        Args:
            scheduling_policy: vLLM's.
            readers: what else there is by name, and whether it goes by predicted lengths.
            foretold: whether there is a predictor.

        Raises:
            ValueError: it does not.
        """
        reading = [name for name, reads in {"policy": self.reads_predictions, **readers}.items() if reads]
        if reading and not foretold:
            raise ValueError(f"{reading[0]} goes by predicted lengths: give predictor (perfect, by_data_set, {{kind: noisy, sigma: 0.5}})")
        if self.queue != "vllm" and scheduling_policy != "fcfs":
            raise ValueError(f"policy.queue {self.queue} and engine.scheduling_policy {scheduling_policy} exclude each other")


VLLM = Policy()
"""vLLM's own rules."""
