"""Makes measurements smaller for the repository, without changing what is read from them.

    python -m profiler.pack PATH …

A trace's folder: its steps' results to 10 µs, their schedule to 1 ms, their KV usage to a thousandth, without the columns that nothing
reads of a trace.
`….points.jsonl.gz`: numbers to the nanosecond, all lines in one gzip member. Any other `….gz` (a calibration's files, too, of which the
fit reads every column): its content as it is. All are compressed by zopfli where it is installed: the same format, a fifth smaller than
what gzip makes at its best.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from profiler.files import write_bytes
from profiler.parts import to_ns
from simulator.errors import UserError

UNREAD_COLUMNS = ("schedule_cpu_s", "update_cpu_s", "launch_s", "padded_tokens", "accepted_seqs")
"""Of a trace's steps: a calibration's fit needs the first three, `graph_mode` tells the fourth, and meta.json sums the last up."""

STEP_DIGITS = 5
"""A step takes milliseconds: 10 µs are lost in its noise, and do not add up, since times count from the trace's start."""
SCHEDULE_DIGITS = 3
"""When a step was chosen tells only whether the engine was idle before it, and when that ended: else a result came just before."""
USAGE_DIGITS = 3
"""A thousandth of the KV cache: its course is compared in percent."""


def pack(path: Path) -> tuple[int, int]:
    """Packs a trace's folder or one file; returns its bytes before and after.

    Raises:
        UserError: it is neither, or cannot be read or written.
    """
    files = sorted(path.glob("*.csv.gz")) if path.is_dir() else [path]
    if not files or any(file.suffix != ".gz" for file in files):
        raise UserError(f"{path}: expected a trace's folder, or a file that ends in .gz")
    sizes = [_pack(file, _steps if path.is_dir() and file.name == "steps.csv.gz" else _content) for file in files]
    return sum(before for before, _ in sizes), sum(after for _, after in sizes)


def _pack(file: Path, lean: Callable[[bytes], bytes]) -> tuple[int, int]:
    try:
        packed = file.read_bytes()
        content = gzip.decompress(packed)
    except (OSError, EOFError) as error:
        raise UserError(f"{file}: cannot be read as gzip ({error})") from None
    kept = _points(content) if file.name.endswith("points.jsonl.gz") else lean(content)
    smaller = _compress(kept)
    if kept == content and len(smaller) >= len(packed):
        return len(packed), len(packed)
    write_bytes(file, smaller)
    return len(packed), len(smaller)


def _content(content: bytes) -> bytes:
    return content


def _steps(content: bytes) -> bytes:
    steps = pd.read_csv(io.BytesIO(content)).drop(columns=list(UNREAD_COLUMNS), errors="ignore")
    return steps.round(STEP_DIGITS).round({"schedule_s": SCHEDULE_DIGITS, "kv_usage": USAGE_DIGITS}).to_csv(index=False).encode()


def _points(content: bytes) -> bytes:
    identity, *points = content.splitlines()
    return b"\n".join([identity, *(json.dumps(to_ns(json.loads(point)), separators=(",", ":")).encode() for point in points), b""])


def _compress(content: bytes) -> bytes:
    try:
        from zopfli.gzip import compress
    except ImportError:
        return gzip.compress(content, mtime=0)
    packed: bytes = compress(content)
    return packed


def main(arguments: list[str]) -> int:
    """Exit code 0, or 2 where a path is wrong: those before it are packed."""
    if not arguments or {"-h", "--help"} & set(arguments):
        sys.stdout.write(f"{__doc__}\n")
        return 0
    try:
        for argument in arguments:
            before, after = pack(Path(argument))
            sys.stdout.write(f"{argument}: {before:,} → {after:,} bytes\n")
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
