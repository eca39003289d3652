"""What is measured of what is wanted: `models/wanted.csv` beside the cost models that are there, and the starts that are missing."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path

from omegaconf import OmegaConf

from profiler.options import CONF
from simulator.artifacts.models import artifact_name, artifacts
from simulator.errors import UserError

WANTED = "wanted.csv"


@dataclass(frozen=True)
class Start:
    """One engine start, and what comes of it: a cost model, or another measurement of one that is there."""

    slice: str
    """Of what it is a part."""
    gpu: str
    model: str
    weights: str
    kv_cache_dtype: str
    tensor_parallel_size: int
    speculation: str
    """`<method>-k<K>`; empty: none."""
    again: str
    """Name of a further measurement that lies beside the cost model's own; empty: the cost model's own."""
    options: str
    """Further options of the profiler that this start needs."""

    @property
    def name(self) -> str:
        """`bf16-kv_auto-tp1`, `bf16-kv_auto-tp1-another`."""
        file = artifact_name(self.weights, self.kv_cache_dtype, self.tensor_parallel_size, self.speculation or None)
        return file.removesuffix(".json") + (f"-{self.again}" if self.again else "")

    def measured(self, root: Path) -> bool:
        """Whether its file is there."""
        return (root / self.gpu / self.model / f"{self.name}{'.profile.json.gz' if self.again else '.json'}").is_file()

    @property
    def command(self) -> str:
        """That measures it, on a machine with the GPU."""
        speculation, _, tokens = self.speculation.rpartition("-k")
        options = {"model": self.model, "gpu": self.gpu}
        if speculation:
            options |= {"opt": speculation, "opt.speculative.num_speculative_tokens": tokens}
            if self.weights != "bf16":
                options |= {"opt.weights": self.weights, "opt.quantization_config": _quantization(self.weights)}
        elif self.weights != "bf16":
            options["opt"] = self.weights
        if self.kv_cache_dtype != "auto":
            options["opt.kv_cache_dtype"] = self.kv_cache_dtype
        if self.tensor_parallel_size > 1:
            options["tensor_parallel_size"] = str(self.tensor_parallel_size)
        if self.again:  # not into the folder of the first, which it would continue
            options["out"] = f"results/profiles/{self.gpu}/{self.model}/{self.name}"
        words = [*(f"{key}={value}" for key, value in options.items()), *self.options.split()]
        return shlex.join(["python", "-m", "profiler", *words])


def _quantization(weights: str) -> str:
    """An opt's quantization as one word of the command line."""
    config = OmegaConf.select(OmegaConf.load(CONF / "opt" / f"{weights}.yaml"), "quantization_config")
    return json.dumps(OmegaConf.to_container(config), separators=(",", ":")).replace('"', "")


def wanted(root: Path) -> list[Start]:
    """The rows of `wanted.csv`, in their order; none where there is no such file.

    Raises:
        UserError: a row is not a start.
    """
    path = root / WANTED
    if not path.is_file():
        return []
    columns = [field.name for field in fields(Start)]
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != columns:
            raise UserError(f"{path}: columns {', '.join(reader.fieldnames or ())}; expected {', '.join(columns)}")
        rows = list(reader)
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values() or not row["tensor_parallel_size"].isdecimal():
            raise UserError(f"{path}, line {number}: expected {', '.join(columns)}")
    return [_start(row) for row in rows]


def _start(row: dict[str, str]) -> Start:
    size = int(row.pop("tensor_parallel_size"))
    return Start(tensor_parallel_size=size, **row)


def matrix(root: Path) -> str:
    """The part of `models/README.md` on what there is and what is missing; empty where nothing is wanted."""
    starts = wanted(root)
    if not starts:
        return ""
    missing = [start for start in starts if not start.measured(root)]
    have = [path.relative_to(root).with_suffix("").as_posix() for path in artifacts(root)]
    named = {f"{start.gpu}/{start.model}" for start in starts} | {name.rpartition("/")[0] for name in have}
    rows = []
    for place in sorted(named):
        measured = [name.rpartition("/")[2] for name in have if name.rpartition("/")[0] == place]
        measured += [start.name for start in starts if start.again and f"{start.gpu}/{start.model}" == place and start not in missing]
        lacking = [start.name for start in missing if f"{start.gpu}/{start.model}" == place]
        rows.append(f"| {place.replace('/', ' | ')} | {', '.join(measured) or '–'} | {', '.join(lacking) or '–'} |")
    head = f"{len(have)} cost models. Of the {len(starts)} measurements in `{WANTED}`, {len(starts) - len(missing)} are there."
    table = "| GPU | model | measured | missing |\n|---|---|---|---|\n" + "\n".join(rows)
    return "\n\n".join(["## What is measured, and what is missing", head, table, *_commands(missing)]) + "\n"


def _commands(missing: Iterable[Start]) -> list[str]:
    """The starts that are missing, in their order, as commands by slice. What is measured again is kept by `profiler.again`."""
    said = []
    for part, starts in groupby(missing, key=lambda start: start.slice):
        commands = [start.command for start in starts]
        listed = "\n".join(f"$ {command}" for command in commands)
        said.append(f"<details><summary>Missing of {part}: {len(commands)}</summary>\n\n```console\n{listed}\n```\n\n</details>")
    return said
