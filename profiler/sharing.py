"""What attention saves where sequences share the heads of their prompts: points of kind `shared` tell.

A block that several sequences hold is read once for each of them, and may still lie in the GPU's cache when the next one comes. Such a
profile (`opt=prefix_caching kinds=[shared]`) lies in `models/<gpu>/sharing/`, and counts for all cost models of that GPU.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from profiler.fit import non_negative
from profiler.profiled import without_gaps
from profiler.raw import Raw
from simulator.errors import UserError

SHARING = "sharing"
"""Folder of such profiles below `models/<gpu>/`."""

DIGITS = 3


def read_sharing(folder: Path) -> list[Raw]:
    """The profiles that lie there; empty: this was not measured.

    Raises:
        UserError: one is unreadable.
    """
    return [Raw.read(path.with_name(path.name.replace(".profile.json.gz", ".json"))) for path in sorted(folder.glob("*.profile.json.gz"))]


def shared_read(profiles: list[Raw]) -> float:
    """`Attention.shared_read`: the mean over profiles.

    In each, a decode's time is one for its batch size, so much for each token of context, and so much less for each that is read a
    further time; every batch was measured with heads shared and, of the same contexts, with none.

    Raises:
        UserError: a profile has no such points.
    """
    return round(float(np.mean([_shared_read(raw) for raw in profiles])), DIGITS)


def _shared_read(raw: Raw) -> float:
    steps = raw.steps
    steps = steps[steps["point"].str.startswith("shared ") & (steps["prefill_seqs"] == 0)]
    if steps.empty or "decode_shared_tokens" not in steps:
        raise UserError("a profile of shared heads has no points that share: python -m profiler opt=prefix_caching kinds=[shared]")
    # What is shared makes a batch quicker than its like: those that share, and those that do not, are each held against their own kind.
    steps = pd.concat([its[without_gaps(its)] for _, its in steps.groupby("decode_shared_tokens")])
    columns = ["decode_context_tokens", "gpu_s"]
    rows = steps.groupby(["point", "decode_seqs", "decode_shared_tokens"])[columns].median().reset_index()
    batches = [(rows["decode_seqs"] == batch).to_numpy(np.float64) for batch in sorted(rows["decode_seqs"].unique())]
    context, shared = (rows[name].to_numpy(np.float64) for name in ("decode_context_tokens", "decode_shared_tokens"))
    time_s = rows["gpu_s"].to_numpy(np.float64)
    # Errors count relative to a step's time, as in all fits of this project; what is saved is paid for a token of one's own at most.
    work = np.column_stack([*batches, context - shared, shared]) / time_s[:, None]
    own, again = non_negative(work, np.ones(len(rows)))[-2:]
    return float(min(again / own, 1.0))
