"""`python -m profiler.distance a=FOLDER b=FOLDER`: how far two profiles of one model lie apart, over the batches that both measured.

Usage: python -m profiler.distance a=PROFILE b=PROFILE

  a, b     what `python -m profiler` wrote, or the path of an artifact (….json) with its measurements beside it

Two profiles of the same kind show how well a GPU repeats itself; dummy against realistic weights shows what the data do to a step.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from profiler.raw import Raw
from simulator.errors import UserError

BATCH = (
    "graph_mode", "padded_tokens", "prefill_seqs", "prefill_tokens", "prefill_context_tokens", "decode_seqs", "decode_context_tokens",
    "decode_context_max_tokens", "verify_tokens",
)  # fmt: skip
"""What two steps share that count as the same; contexts, and their mean over the sequences, to the nearest `NEAR` tokens."""
NEAR = 64


def distance(a: Raw, b: Raw) -> pd.DataFrame:
    """A row for each kind of step, forward pass and what follows it apart.

    Columns: `batches` in common, and of b / a − 1 the `median`, the 90th percentile without its sign (`p90`) and the `mean`.

    Raises:
        UserError: no batch was measured in both.
    """
    pairs = _rows(a).add_suffix("_a").join(_rows(b).add_suffix("_b"), how="inner")
    if pairs.empty:
        raise UserError("the two profiles have no batch in common")
    prompts, decodes = pairs.index.get_level_values("prefill_tokens") > 0, pairs.index.get_level_values("decode_seqs") > 0
    kinds = {"decode": decodes & ~prompts, "prefill": prompts & ~decodes, "mixed": prompts & decodes}
    found = {}
    for kind, its in kinds.items():
        for part in ("forward_s", "after_s"):
            ratio = (pairs.loc[its, f"{part}_b"] / pairs.loc[its, f"{part}_a"] - 1).to_numpy(np.float64)
            if len(ratio):
                found[f"{kind}, {_PARTS[part]}"] = {
                    "batches": len(ratio), "median": np.median(ratio), "p90": np.quantile(np.abs(ratio), 0.9), "mean": ratio.mean(),
                }  # fmt: skip
    return pd.DataFrame(found).T


_PARTS = {"forward_s": "forward pass", "after_s": "vocabulary and sampler"}


def _rows(raw: Raw) -> pd.DataFrame:
    """Medians of the steps that the GPU ran without gaps, by what was in them."""
    steps = raw.steps
    steps = steps[steps["queued"] & (steps.get("peaked", pd.Series(True, index=steps.index)) != False)]  # noqa: E712  # older: no value
    near = {name: (steps[name] / NEAR).round() for name in BATCH if "context" in name}
    near["decode_context_tokens"] = (steps["decode_context_tokens"] / steps["decode_seqs"].clip(lower=1) / NEAR).round()
    steps = steps.assign(after_s=steps["gpu_s"] - steps["forward_s"], **near)
    return steps.groupby(list(BATCH))[["forward_s", "after_s"]].median()


def _arguments(argv: list[str]) -> tuple[Path, Path]:
    given = dict(argument.split("=", 1) for argument in argv if "=" in argument)
    if set(given) != {"a", "b"} or len(argv) != len(given):
        raise UserError(f"arguments {' '.join(argv) or '(none)'}: expected a=PROFILE b=PROFILE")
    return Path(given["a"]), Path(given["b"])


def main(argv: list[str]) -> int:
    """The command; returns its exit status."""
    if argv in (["--help"], ["-h"]):
        sys.stdout.write(f"{__doc__}\n")
        return 0
    try:
        a, b = _arguments(argv)
        table = distance(Raw.read(a), Raw.read(b))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{'b / a − 1':30} {'batches':>7} {'median':>8} {'p90':>7} {'mean':>8}\n")
    for name, row in table.iterrows():
        sys.stdout.write(f"{name:30} {row['batches']:7.0f} {row['median']:+8.2%} {row['p90']:7.2%} {row['mean']:+8.2%}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
