"""What prompts take longer in service than in a profile: points of kind `sustained` tell.

A profile's prompts come after a pause, when the GPU is at its highest clocks. In service it never rests, and at its power limit its clocks
fall. Prompts that follow one another for seconds, or decodes in turn, show by how much; the first of them are left in, for they are few.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

import numpy as np

from profiler.fit import StepTimeRegressor
from profiler.profiled import sustained_rows
from profiler.raw import Raw
from simulator.artifacts.artifact import Artifact
from simulator.artifacts.models import artifacts
from simulator.cost import CostModel
from simulator.engine import GraphMode
from simulator.features import StepFeatures

OWN = "its own profile"


def sustained_ns(raw: Raw, after: Raw | None, model: StepTimeRegressor) -> float | None:
    """Nanoseconds that a token of a prompt takes longer than `model`, fitted to the same profile's grid, says; None: not measured.

    Steps that the GPU was short of work in tell nothing; errors count relative to a step's time.
    """
    rows = sustained_rows(raw, after)
    if rows is None:
        return None
    predicted_ns, tokens = model.predict(rows.matrix), rows.table["prefill_tokens"].to_numpy(np.float64)
    longer, weight = rows.table["gpu_ns"].to_numpy(np.float64) / predicted_ns - 1, tokens / predicted_ns
    return max(float((weight @ longer) / (weight @ weight)), 0.0)


def usual_share(models: Path, gpu: str) -> tuple[float, int]:
    """(the median over the GPU's cost models whose own profile tells, of a step that is one prompt of the whole budget; how many)."""
    told = [artifact for path in artifacts(models) if (artifact := Artifact.model_validate_json(path.read_text())).gpu == gpu]
    shares = [artifact.sustained_ns / whole_budget_ns(artifact) for artifact in told if artifact.provenance.sustained == OWN]
    return (median(shares), len(shares)) if shares else (0.0, 0)


def whole_budget_ns(artifact: Artifact) -> float:
    """A token's share of a step that is one prompt of the whole token budget, as in the profile."""
    tokens = artifact.memory.max_num_batched_tokens
    plain = artifact.model_copy(update={"sustained_ns": 0.0, "sampling": {}})
    features = StepFeatures(1, tokens, tokens, tokens * (tokens + 1) // 2, padded_tokens=tokens, graph_mode=GraphMode.NONE)
    return float(CostModel(plain).gpu_ns(features)) / tokens
