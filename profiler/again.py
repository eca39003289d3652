"""`python -m profiler.again profile=FOLDER`: a further measurement, kept beside the cost model that was measured before.

Usage: python -m profiler.again [profile=FOLDER] [as=NAME] [models=FOLDER]

  profile  what `python -m profiler` wrote; left out: nothing is kept, and README.md is written anew
  as       what its files are called: <cost model>-<NAME>.… (default: another)
  models   the folder of cost models (default: those that this project ships)

README.md there says how far it lies from the cost model's own measurements.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from profiler.files import write_text
from profiler.raw import Raw
from profiler.readme import readme
from simulator.artifacts.models import MODELS, find
from simulator.errors import UserError


def keep(raw: Raw, name: str, root: Path) -> Path:
    """Writes the measurements beside the cost model of the same engine; returns their path, without the ends of the files' names.

    Raises:
        UserError: there is no such cost model, or the place cannot be written.
    """
    meta = raw.meta
    speculative = meta.get("speculative")
    beside = find(
        meta["gpu"],
        meta["model"],
        weights=meta["weights"],
        kv_cache_dtype=meta["kv_cache_dtype"],
        tensor_parallel_size=meta["tensor_parallel_size"],
        speculation=speculative and f"{speculative['method']}-k{speculative['num_speculative_tokens']}",
        root=root,
    )
    path = beside.with_name(f"{beside.stem}-{name}.json")
    if path.is_file():
        raise UserError(f"as={name}: {path.name} is a cost model; give another name")
    raw.write(path)
    return path.with_suffix("")


def _options(argv: list[str]) -> tuple[Path | None, str, Path]:
    """(profile, name, models)."""
    given = dict(argument.split("=", 1) for argument in argv if "=" in argument)
    if len(given) != len(argv) or set(given) - {"profile", "as", "models"}:
        raise UserError(f"arguments {' '.join(argv)}: expected profile=FOLDER, as=NAME or models=FOLDER")
    name, root = given.get("as", "another"), Path(given.get("models", MODELS))
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise UserError(f"as={name}: expected small letters and digits, such as another-machine")
    if not root.is_dir():
        raise UserError(f"models={root}: no such folder")
    return Path(given["profile"]) if "profile" in given else None, name, root


def main(argv: list[str]) -> int:
    """The command; returns its exit status."""
    if argv in (["--help"], ["-h"]):
        sys.stdout.write(f"{__doc__}\n")
        return 0
    try:
        profile, name, root = _options(argv)
        if profile:
            sys.stdout.write(f"{keep(Raw.read(profile), name, root)}\n")
        write_text(root / "README.md", readme(root))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{root / 'README.md'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
