"""`python -m profiler.blocks profile=FOLDER`: the KV blocks that vLLM reported at a start, against those predicted from another start.

Usage: python -m profiler.blocks profile=FOLDER [models=FOLDER]

  profile  what `python -m profiler` wrote at other settings than the shipped cost model's; a start says it all, so the cheapest is
           python -m profiler model=r1-distill-qwen-7b 'kinds=[]' max_num_batched_tokens=2048 gpu_memory_utilization=0.85 out=FOLDER
  models   where the cost model of the same engine lies (default: those that this project ships)

Exit status: 0 within 0.5 %, 1 further off, 2 a mistake in what was given.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.artifacts.memory import num_gpu_blocks
from simulator.artifacts.models import MODELS, artifact_name
from simulator.cost import CostModel
from simulator.errors import UserError

TOLERANCE = 0.005
SETTINGS = ("gpu_memory_utilization", "max_num_batched_tokens", "max_num_seqs")


@dataclass(frozen=True)
class Check:
    """Blocks of one pool."""

    settings: dict[str, Any]
    reported: int
    predicted: int

    @property
    def off(self) -> float:
        """Predicted / reported − 1."""
        return self.predicted / self.reported - 1

    def __str__(self) -> str:
        settings = ", ".join(f"{name} {value:g}" for name, value in self.settings.items())
        return f"{settings}: vLLM reported {self.reported:,} blocks, predicted are {self.predicted:,} ({self.off:+.2%})"


def check(profile: Path, models: Path = MODELS) -> Check:
    """Compares the start of a profile with what the shipped cost model of its engine says of its settings.

    Raises:
        UserError: the profile is unreadable, there is no such cost model, it does not say where memory went, or the settings are its own.
    """
    try:
        meta = json.loads((profile / "profile.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"profile {profile}: profile.json is not readable ({error})") from None
    name = artifact_name(meta["weights"], meta["kv_cache_dtype"], meta["tensor_parallel_size"])
    memory = CostModel.load(models / meta["gpu"] / meta["model"] / name).artifact.memory
    engine = meta["engine"]
    settings = {setting: engine[setting] for setting in SETTINGS}
    if settings == {setting: getattr(memory, setting) for setting in SETTINGS}:
        raise UserError(f"profile {profile}: was measured at the settings of {name}, which says nothing about others")
    predicted = num_gpu_blocks(memory, **settings)
    if predicted is None:
        raise UserError(f"cost model {name}: does not say where memory went")
    return Check(settings, engine["num_gpu_blocks"], predicted)


def _arguments(argv: list[str]) -> dict[str, Path]:
    given = dict(argument.split("=", 1) for argument in argv if "=" in argument)
    if len(given) != len(argv) or "profile" not in given or set(given) - {"profile", "models"}:
        raise UserError(f"arguments {' '.join(argv) or '(none)'}: expected profile=FOLDER, and if you like models=FOLDER")
    return {name: Path(text) for name, text in given.items()}


def main(argv: list[str]) -> int:
    """The command; returns its exit status."""
    if argv in (["--help"], ["-h"]):
        sys.stdout.write(f"{__doc__}\n")
        return 0
    try:
        given = _arguments(argv)
        found = check(given["profile"], given.get("models", MODELS))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{found}\n")
    return 0 if abs(found.off) <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
