"""Replicas beside the main ones: of another GPU, other weights, or other options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from simulator.artifacts.models import find
from simulator.cluster import Group
from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.workload.base import Spec


class PoolConfig(Spec):
    """What is not given is as in the main pool. Only what was measured can be chosen: `models/`."""

    name: str | None = None
    """In reports; null: GPU and weights."""
    num_replicas: int = Field(1, ge=1)
    gpu: str | None = None
    weights: str | None = None
    kv_cache_dtype: str | None = None
    tensor_parallel_size: int | None = Field(None, ge=1)
    cost_model: str | None = None
    """Path of an artifact, instead of all of the above."""
    engine: dict[str, Any] | None = None
    """vLLM's option names; null: the main pool's."""

    def path(self, model: str, gpu: str, weights: str, kv_cache_dtype: str, tensor_parallel_size: int, speculation: str | None) -> Path:
        """The artifact's file; the arguments are the main pool's.

        Raises:
            UserError: nothing was measured for these options.
        """
        if self.cost_model is not None:
            return Path(self.cost_model)
        return find(
            self.gpu or gpu,
            model,
            weights=self.weights or weights,
            kv_cache_dtype=self.kv_cache_dtype or kv_cache_dtype,
            tensor_parallel_size=self.tensor_parallel_size or tensor_parallel_size,
            speculation=speculation,
        )

    def group(self, cost: CostModel, engine: EngineConfig) -> Group:
        """The pool's replicas."""
        return Group(self.name or f"{cost.artifact.gpu} {cost.artifact.weights}", engine, cost, self.num_replicas)
