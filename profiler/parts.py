"""Measured points on disk, each as soon as it is finished: a run that ends early loses none, and the next one goes on from there."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import pandas as pd

from profiler.errors import EngineError
from simulator.errors import UserError


class Parts:
    """`points.jsonl.gz`: a line that says what is profiled, then a line a point; every line is written as a gzip member of its own.

    So a line is whole or, after a crash, cut off; a cut-off tail is dropped on opening. `profiler.pack` makes one member of them all.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        """Opens or begins the file.

        Raises:
            UserError: `folder` holds another profile, or cannot be written.
        """
        self.path = folder / "points.jsonl.gz"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lines = self._read()
            if not lines:
                self.path.unlink(missing_ok=True)
                self._append(identity)
            elif differing := [key for key in identity if lines[0].get(key) != identity[key]]:
                raise UserError(f"out={folder} holds a profile with another {', '.join(differing)}: give another out, or remove it")
        except OSError as error:
            raise UserError(f"out={folder}: {error.strerror}") from None
        self.points = lines[1:]

    @property
    def done(self) -> set[str]:
        """Names of the points already measured."""
        return {point["point"] for point in self.points}

    def add(self, point: dict[str, Any]) -> None:
        """Writes a finished point; its `rows` become columns.

        Raises:
            EngineError: the disk is full, or gone.
        """
        rows = point.pop("rows")
        point["steps"] = {column: [row[column] for row in rows] for column in (rows[0] if rows else ())}
        point = to_ns(point)
        try:
            self._append(point)
        except OSError as error:
            raise EngineError(f"{self.path}: {error.strerror}; {len(self.points)} points are kept there") from error
        self.points.append(point)

    def steps(self) -> pd.DataFrame:
        """A row a step, with its point's name and kind before the step's own columns."""
        # A point without steps (older files have such, of a kind that is measured no more) would make floats of the others' integers.
        points = [point for point in self.points if point["steps"]]
        frames = [pd.DataFrame(point["steps"]).assign(point=point["point"], kind=point["kind"]) for point in points]
        frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["point", "kind"])
        return frame[["point", "kind", *(column for column in frame if column not in ("point", "kind"))]]

    def finish(self, document: dict[str, Any]) -> None:
        """Writes `steps.csv.gz`, and `document` as `profile.json`: last, so that where it lies the steps are those that it tells of.

        Raises:
            EngineError: the disk is full, or gone.
        """
        folder = self.path.parent
        try:
            (folder / "profile.json").unlink(missing_ok=True)
            self.steps().to_csv(folder / "steps.tmp.gz", index=False, compression={"method": "gzip", "mtime": 0})
            (folder / "steps.tmp.gz").replace(folder / "steps.csv.gz")
            (folder / "profile.tmp").write_text(json.dumps(document, indent=1))
            (folder / "profile.tmp").replace(folder / "profile.json")
        except OSError as error:
            raise EngineError(f"{folder}: {error.strerror}; the points in {self.path} are kept") from error

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("ab") as file:
            file.write(gzip.compress(json.dumps(line, separators=(",", ":")).encode() + b"\n"))

    def _read(self) -> list[dict[str, Any]]:
        """The whole lines; cuts the file after the last of them."""
        if not self.path.exists():
            return []
        data, end = self.path.read_bytes(), 0
        lines: list[dict[str, Any]] = []
        while end < len(data):
            member = zlib.decompressobj(wbits=31)
            try:
                text = member.decompress(data[end:])
            except zlib.error:
                break
            if not member.eof:
                break
            lines += map(json.loads, text.splitlines())
            end = len(data) - len(member.unused_data)
        if end < len(data):
            with self.path.open("r+b") as file:
                file.truncate(end)
        return lines


def to_ns(value: Any) -> Any:
    """A JSON value with its numbers rounded to nine digits after the point: no clock tells more of seconds."""
    if isinstance(value, dict):
        return {key: to_ns(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [to_ns(inner) for inner in value]
    return round(value, 9) if isinstance(value, float) else value
