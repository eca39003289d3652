"""Points on disk survive whatever ends a run."""

from pathlib import Path

import pytest
from pandas.testing import assert_frame_equal

from profiler.errors import EngineError
from profiler.parts import Parts
from simulator.errors import UserError

IDENTITY = {"model": "tiny", "vllm": "0.26.0"}


def point(name: str) -> dict[str, object]:
    return {"point": name, "kind": "decode", "rows": [{"gpu_s": 0.25, "decode_seqs": 4}, {"gpu_s": float("nan"), "decode_seqs": 4}]}


def test_a_second_run_finds_the_points_of_the_first(tmp_path: Path) -> None:
    Parts(tmp_path, IDENTITY).add(point("a"))
    again = Parts(tmp_path, IDENTITY)
    again.add(point("b"))
    assert Parts(tmp_path, IDENTITY).done == {"a", "b"}
    steps = again.steps()
    assert list(steps["point"]) == ["a", "a", "b", "b"]
    assert list(steps["gpu_s"].dropna()) == [0.25, 0.25]


def test_a_point_without_steps_leaves_those_of_the_others_as_they_are(tmp_path: Path) -> None:
    """A file from when matrix products were timed by themselves is continued."""
    straight, older = Parts(tmp_path / "straight", IDENTITY), Parts(tmp_path / "older", IDENTITY)
    straight.add(point("a"))
    older.add({"point": "product 1×1006@0", "kind": "product", "products_s": 0.02, "took_s": 0.1, "rows": []})
    again = Parts(tmp_path / "older", IDENTITY)
    again.add(point("a"))
    assert again.done == {"product 1×1006@0", "a"}
    assert_frame_equal(again.steps(), straight.steps())


@pytest.mark.parametrize("lost", [1, 7, 30])
def test_a_torn_tail_is_dropped_and_measured_again(tmp_path: Path, lost: int) -> None:
    first = Parts(tmp_path, IDENTITY)
    first.add(point("a"))
    first.add(point("b"))
    whole = first.path.read_bytes()
    first.path.write_bytes(whole[:-lost])
    again = Parts(tmp_path, IDENTITY)
    assert again.done == {"a"}
    again.add(point("b"))
    assert first.path.read_bytes() == whole


def test_an_interrupted_run_ends_with_the_same_steps(tmp_path: Path) -> None:
    straight = Parts(tmp_path / "straight", IDENTITY)
    for name in "abc":
        straight.add(point(name))
    for name in "abc":
        Parts(tmp_path / "cut", IDENTITY).add(point(name))
    assert Parts(tmp_path / "cut", IDENTITY).steps().equals(straight.steps())


def test_another_profile_is_refused_by_name(tmp_path: Path) -> None:
    Parts(tmp_path, IDENTITY)
    with pytest.raises(UserError, match="another vllm"):
        Parts(tmp_path, IDENTITY | {"vllm": "0.32.0"})


def test_a_folder_that_cannot_be_made_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="out="):
        Parts(tmp_path / "file" / "out", IDENTITY)


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    parts = Parts(tmp_path, IDENTITY)
    parts.add(point("a"))
    kept = parts.path
    parts.path = Path("/dev/full")
    with pytest.raises(EngineError, match="No space left on device; 1 points are kept") as error:
        parts.add(point("b"))
    assert "\n" not in str(error.value)
    parts.path = kept
    assert Parts(tmp_path, IDENTITY).done == {"a"}
