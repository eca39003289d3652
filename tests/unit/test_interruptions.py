"""However often a profile is interrupted, and wherever: the same measurements make the same cost model, byte for byte."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from profiler.export import artifact_json
from profiler.fit_profile import after_of, fit_profile
from profiler.parts import Parts
from profiler.raw import Raw
from simulator.artifacts.models import MODELS

SHIPPED = MODELS / "h100-sxm" / "r1-distill-qwen-32b" / "awq-kv_auto-tp1.json"
Point = dict[str, Any]


@pytest.fixture(scope="module")
def measured() -> tuple[Point, list[Point]]:
    """What a run on an H100 measured: who it was, and its points in their order."""
    lines = gzip.decompress(SHIPPED.with_suffix(".points.jsonl.gz").read_bytes()).splitlines()
    identity, *points = (json.loads(line) for line in lines)
    return identity, points


def as_measured(point: Point) -> Point:
    """A point as it comes from the engine: a row a step."""
    columns = point["steps"]
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return {name: value for name, value in point.items() if name != "steps"} | {"rows": rows}


def run(folder: Path, identity: Point, points: list[Point]) -> Iterator[Parts]:
    """As `profiler.run` does it: what is missing is measured, in the grid's order; the caller may end it after each point."""
    parts = Parts(folder, identity)
    for point in points:
        if point["point"] not in parts.done:
            parts.add(as_measured(point))
            yield parts
    parts.finish(Raw.read(SHIPPED).meta | {"points": [{k: v for k, v in point.items() if k != "steps"} for point in parts.points]})


def torn(folder: Path, lost: int) -> None:
    """The process died while it wrote: the last bytes never came to the disk."""
    path = folder / "points.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-lost])


def between_points(folder: Path, chance: np.random.Generator) -> bool:
    return chance.random() < 0.1


def while_writing(folder: Path, chance: np.random.Generator) -> bool:
    """Some bytes of the last point are missing, or all of it and some of the one before it."""
    if chance.random() >= 0.1:
        return False
    torn(folder, int(chance.choice([1, 2, 8, 100, 1500, (folder / "points.jsonl.gz").stat().st_size - 3])))
    return True


def after_every_point(folder: Path, chance: np.random.Generator) -> bool:
    return True


def artifact(folder: Path) -> str:
    return artifact_json(fit_profile(Raw.read(folder), after=after_of(SHIPPED))[0])


@pytest.fixture(scope="module")
def uninterrupted(measured: tuple[Point, list[Point]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert len(list(run(folder, *measured))) == len(measured[1])
    return folder


@pytest.fixture(scope="module")
def its_artifact(uninterrupted: Path) -> str:
    return artifact(uninterrupted)


@pytest.mark.parametrize("ended", [between_points, while_writing, after_every_point])
def test_the_artifact_is_that_of_an_uninterrupted_run(
    measured: tuple[Point, list[Point]],
    uninterrupted: Path,
    its_artifact: str,
    tmp_path: Path,
    ended: Callable[[Path, np.random.Generator], bool],
) -> None:
    chance, starts = np.random.default_rng(0), 0
    while not (tmp_path / "profile.json").exists():
        starts += 1
        for _ in run(tmp_path, *measured):
            if ended(tmp_path, chance):
                break
    assert starts > 5
    names = ("points.jsonl.gz", "steps.csv.gz", "profile.json")
    contents = [[gzip.decompress(data) if name.endswith("gz") else data for name in names for data in [(folder / name).read_bytes()]]
                for folder in (tmp_path, uninterrupted)]  # fmt: skip
    assert contents[0] == contents[1]
    assert artifact(tmp_path) == its_artifact


def test_an_interrupted_end_leaves_no_half_result(
    measured: tuple[Point, list[Point]], its_artifact: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier, shorter run's results lie there; a longer one is ended between its two files."""
    identity, points = measured
    list(run(tmp_path, identity, points[:20]))
    replace = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        moved = replace(self, target)
        if target.name == "steps.csv.gz":
            raise KeyboardInterrupt
        return moved

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(run(tmp_path, identity, points))
    assert not (tmp_path / "profile.json").exists()
    assert not list(run(tmp_path, identity, points))
    assert artifact(tmp_path) == its_artifact
