"""A profile's measurements in the form in which they lie beside an artifact: small, and all that a fit reads."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from profiler.files import write_bytes
from simulator.cost import CostModel
from simulator.errors import UserError

COLUMNS = (
    "point", "prefill_seqs", "prefill_tokens", "prefill_context_tokens", "prefill_attention_tokens", "decode_seqs",
    "decode_context_tokens", "decode_context_max_tokens", "decode_shared_tokens", "verify_tokens", "graph_mode", "padded_tokens",
    "gpu_s", "forward_s", "logits_s", "sample_s", "draft_s", "peaked", "launch_s", "behind_s", "between_s", "schedule_cpu_s",
    "update_cpu_s", "hold_s", "queued",
)  # fmt: skip
"""Of the recorded columns, those that a fit reads."""

DIGITS = 7
"""Tenths of microseconds: below the resolution of the GPU's events."""
THREAD_DIGITS = dict.fromkeys(("launch_s", "behind_s", "between_s", "schedule_cpu_s", "update_cpu_s"), 6)
"""Microseconds: what a thread of the host takes scatters by far more."""


@dataclass(frozen=True, eq=False)
class Raw:
    """The texts of `profile.json` and `steps.csv`, without what no fit reads."""

    profile_json: str
    steps_csv: str

    @property
    def meta(self) -> dict[str, Any]:
        """`profile.json`."""
        loaded: dict[str, Any] = json.loads(self.profile_json)
        return loaded

    @property
    def steps(self) -> pd.DataFrame:
        """`COLUMNS`, a row a step."""
        return pd.read_csv(io.StringIO(self.steps_csv))

    @property
    def sha256(self) -> str:
        return hashlib.sha256(f"{self.profile_json}\0{self.steps_csv}".encode()).hexdigest()

    @classmethod
    def read(cls, path: Path) -> Raw:
        """Of a profile's folder, or of an artifact that has its measurements beside it.

        Raises:
            UserError: a file is missing or unreadable.
        """
        names = ("profile.json", "steps.csv.gz") if path.is_dir() or path.suffix != ".json" else ("profile.json.gz", "steps.csv.gz")
        files = [path / name if names[0] == "profile.json" else path.with_suffix(f".{name}") for name in names]
        try:
            content = [gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes() for file in files]
            meta, steps = json.loads(content[0]), pd.read_csv(io.BytesIO(content[1]))
        except FileNotFoundError as error:
            raise UserError(
                f"profile {path}: {Path(error.filename).name} is missing; `python -m profiler` writes it when a run ends"
            ) from None
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"profile {path}: not readable ({str(error).splitlines()[0]})") from None
        if steps.empty:
            raise UserError(f"profile {path}: has no steps")
        if "launch_end_s" in steps:
            # How long the GPU still worked when the launch was over: if long, it was never short of work.
            steps["behind_s"] = steps["update_s"] - steps["launch_end_s"]
            if not meta["engine"]["async_scheduling"]:
                # What the engine's thread did between two steps: the result handled, drafts handed over, the next batch chosen and sent.
                steps["between_s"] = steps["launch_start_s"] - steps.groupby("point")["launch_end_s"].shift()
        _blank_unread(steps)
        text = steps[[name for name in COLUMNS if name in steps]].round(DIGITS).round(THREAD_DIGITS).to_csv(index=False)
        return cls(json.dumps(meta, separators=(",", ":")), text)

    def write(self, artifact: Path) -> None:
        """Writes `<artifact>.profile.json.gz` and `<artifact>.steps.csv.gz`; what lies there already stays, as `profiler.pack` left it.

        Raises:
            UserError: the place cannot be written.
        """
        for name, text in (("profile.json", self.profile_json), ("steps.csv", self.steps_csv)):
            path, content = artifact.with_suffix(f".{name}.gz"), text.encode()
            if _content(path) != content:
                write_bytes(path, gzip.compress(content, mtime=0))


def _blank_unread(steps: pd.DataFrame) -> None:
    """A launch counts as served only, not behind a hold; whether the GPU still worked at its end, only where nothing else tells."""
    held = steps["hold_s"] > 0
    steps["launch_s"] = steps["launch_s"].where(~held)
    if "behind_s" in steps:
        steps["behind_s"] = steps["behind_s"].where(held & ~steps["queued"])


def _content(path: Path) -> bytes | None:
    """What is packed in the file; None: no such file, or one that is damaged."""
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error):
        return None


def after_of(artifact: Path) -> Raw | None:
    """The measurements from which a shipped artifact has what its own profile did not time; None: it needs no others."""
    after = CostModel.load(artifact).artifact.provenance.after
    return Raw.read(artifact.parents[2] / after) if after else None
