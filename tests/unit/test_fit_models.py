"""The shipped cost models: their schema, their table, and finding one by what the user asks for."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from profiler.export import artifact_json, export, schema_json
from profiler.readme import readme
from simulator.artifacts.artifact import Artifact, ErrorRow
from simulator.artifacts.models import MODELS, aliases, artifacts, find
from simulator.cost import CostModel
from simulator.errors import UserError

OWNER = MODELS / "h100-sxm" / "r1-distill-qwen-7b" / "bf16-kv_auto-tp1.json"


def artifact(**changed: object) -> Artifact:
    plain = CostModel.constant(10_000_000).artifact.model_dump(mode="json")
    return Artifact.model_validate({**plain, "gpu": "g", "model": "m", "weights": "awq", "kv_cache_dtype": "fp8", **changed})


def test_the_first_model_is_shipped() -> None:
    shipped = CostModel.load(OWNER).artifact
    assert shipped.memory.num_gpu_blocks == 66911
    assert artifacts()


@pytest.mark.parametrize("path", artifacts(), ids=lambda path: path.relative_to(MODELS).as_posix())
def test_every_shipped_artifact_is_valid_and_lies_where_it_says(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(json.loads(path.read_text()), json.loads((MODELS / "schema.json").read_text()))
    shipped = CostModel.load(path).artifact
    assert path.relative_to(MODELS).parts[:2] == (shipped.gpu, shipped.model)
    assert path.name.startswith(f"{shipped.weights}-kv_{shipped.kv_cache_dtype}-tp{shipped.tensor_parallel_size}")
    assert shipped.error
    assert len(shipped.provenance.sha256) == 64


def test_schema_and_table_are_up_to_date() -> None:
    assert (MODELS / "schema.json").read_text() == schema_json()
    assert (MODELS / "README.md").read_text() == readme(MODELS)


@pytest.mark.parametrize("gpu", ["h100", "h100-sxm", "H100"])
@pytest.mark.parametrize("model", ["r1-distill-qwen-7b", "R1-Distill-Qwen-7B", "qwen2.5-math-7b"])
def test_a_model_is_found_under_its_names(gpu: str, model: str) -> None:
    assert find(gpu, model) == OWNER


def test_every_alias_leads_to_a_measured_model() -> None:
    for folder in MODELS.iterdir():
        for name, owner in aliases(folder.name).items():
            assert (folder / owner).is_dir(), f"{name} → {owner}"
            assert not (folder / name).exists()


@pytest.mark.parametrize(
    "asked",
    [
        {"gpu": "h100", "model": "qwq-320b"},
        {"gpu": "tpu", "model": "r1-distill-qwen-7b"},
        {"gpu": "h100", "model": "r1-distill-qwen-7b", "weights": "int3"},
        {"gpu": "h100", "model": "r1-distill-qwen-7b", "kv_cache_dtype": "int2"},
        {"gpu": "h100", "model": "r1-distill-qwen-7b", "tensor_parallel_size": 3},
        {"gpu": "h100", "model": "r1-distill-qwen-7b", "speculation": "crystal-k9"},
        {"gpu": "h100-sxm/r1-distill-qwen-7b/../../h100-sxm", "model": "r1-distill-qwen-7b"},
    ],
)
def test_a_miss_lists_what_was_measured(asked: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"measured.*: .*bf16-kv_auto-tp1") as caught:
        find(**asked)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_an_empty_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="measured: nothing"):
        find("h100", "x", root=tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", '{"a": 1}'])
def test_broken_aliases_are_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "aliases.json").write_text(text)
    with pytest.raises(UserError, match=r"aliases\.json") as caught:
        find("g", "m", root=tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_exported_is_found_and_loaded(tmp_path: Path) -> None:
    wanted = artifact(tensor_parallel_size=2)
    path = export(wanted, tmp_path)
    assert find("g", "m", weights="awq", kv_cache_dtype="fp8", tensor_parallel_size=2, root=tmp_path) == path
    assert CostModel.load(path).artifact == wanted
    assert path.read_text() == artifact_json(wanted)
    assert "## g/m/awq-kv_fp8-tp2" in (tmp_path / "README.md").read_text()


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = export(artifact(), tmp_path)
    before = path.read_text()

    def full_disk(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(UserError, match="No space left"):
        export(artifact(engine="other"), tmp_path)
    assert path.read_text() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


TARGET = (0.015, 0.04, 0.005)
"""Median, 90th percentile and mean (without its sign) of the errors."""

# Left out, a batch size takes its kernel's time with it, and neighbours do not tell it: least of all beyond the captured sizes, where
# round sizes are up to a fifth faster than others, and for quantized weights. Where a size was measured, the in-sample rows hold.
MISSED = Path(__file__).with_name("missed_targets.csv")
"""Rows that miss the target, and what they reach at most; `PYTHONPATH=. python tests/unit/test_fit_models.py` writes it anew."""


def _reached(row: ErrorRow) -> tuple[float, float, float]:
    return row.median_abs, row.p90_abs, abs(row.signed_mean)


def _name(path: Path) -> str:
    return path.relative_to(MODELS).with_suffix("").as_posix()


def _from_profiles() -> list[Path]:
    return [path for path in artifacts() if CostModel.load(path).artifact.measurement is not None]


def write_missed() -> None:
    lines = ["artifact;judged on;median;90th percentile;mean without its sign"]
    for path in _from_profiles():
        for row in CostModel.load(path).artifact.error:
            if any(a > b for a, b in zip(_reached(row), TARGET, strict=True)):
                upto = ";".join(f"{math.ceil(error * 1000) / 1000:g}" for error in _reached(row))
                lines.append(f"{_name(path)};{row.judged_on};{upto}")
    MISSED.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def missed() -> dict[tuple[str, str], tuple[float, ...]]:
    rows = [line.split(";") for line in MISSED.read_text().splitlines()[1:]]
    return {(name, judged_on): tuple(map(float, errors)) for name, judged_on, *errors in rows}


@pytest.mark.parametrize("path", _from_profiles(), ids=lambda path: path.relative_to(MODELS).as_posix())
def test_errors_are_within_the_target_or_listed(path: Path, missed: dict[tuple[str, str], tuple[float, ...]]) -> None:
    for row in CostModel.load(path).artifact.error:
        limit = missed.get((_name(path), row.judged_on), TARGET)
        assert all(a <= b for a, b in zip(_reached(row), limit, strict=True)), (row, limit)


def test_nothing_is_listed_that_is_not_shipped(missed: dict[tuple[str, str], tuple[float, ...]]) -> None:
    shipped = {(_name(path), row.judged_on) for path in _from_profiles() for row in CostModel.load(path).artifact.error}
    assert set(missed) <= shipped


if __name__ == "__main__":
    write_missed()
