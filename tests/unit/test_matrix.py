"""What is wanted, what is there, and that the commands which the README gives for the rest are the right ones."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from profiler.again import keep, main
from profiler.export import artifact_json
from profiler.matrix import WANTED, Start, matrix, wanted
from profiler.options import Profile, load
from profiler.raw import Raw
from profiler.readme import readme
from simulator.artifacts.models import MODELS, find
from simulator.cost import CostModel
from simulator.errors import UserError

OWNER = MODELS / "h100-sxm" / "r1-distill-qwen-7b" / "bf16-kv_auto-tp1.json"
HEAD = (MODELS / WANTED).read_text().splitlines()[0]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with one cost model and its measurements."""
    path = tmp_path / OWNER.relative_to(MODELS)
    path.parent.mkdir(parents=True)
    path.write_text(artifact_json(CostModel.load(OWNER).artifact))
    Raw.read(OWNER).write(path)
    return tmp_path


def test_every_start_is_wanted_once() -> None:
    starts = wanted(MODELS)
    assert len({(start.gpu, start.model, start.name) for start in starts}) == len(starts) > 35


@pytest.mark.parametrize("start", wanted(MODELS), ids=lambda start: f"{start.gpu}/{start.model}/{start.name}")
def test_a_command_measures_what_is_missing(start: Start) -> None:
    words = shlex.split(start.command)
    assert words[:3] == ["python", "-m", "profiler"]
    profile = load(words[3:], Profile)
    assert (profile.gpu.name, profile.model.shape, profile.label) == (start.gpu, start.model, replace(start, again="").name)
    assert (profile.opt.quantization_config is None) == (start.weights == "bf16")


def test_what_is_there_is_not_asked_for_again(models: Path) -> None:
    (models / WANTED).write_text(
        f"{HEAD}\n1,h100-sxm,r1-distill-qwen-7b,bf16,auto,1,,,\n1,h100-sxm,r1-distill-qwen-7b,awq,auto,2,,,max_model_len=16384\n"
        "2,h100-sxm,r1-distill-qwen-7b,bf16,auto,1,,another,\n"
    )
    text = matrix(models)
    assert "1 cost model" in text
    assert "| h100-sxm | r1-distill-qwen-7b | bf16-kv_auto-tp1 | awq-kv_auto-tp2, bf16-kv_auto-tp1-another |" in text
    assert "$ python -m profiler model=r1-distill-qwen-7b gpu=h100-sxm opt=awq tensor_parallel_size=2 max_model_len=16384\n" in text
    keep(Raw.read(OWNER), "another", models)
    text = matrix(models)
    assert "| bf16-kv_auto-tp1, bf16-kv_auto-tp1-another | awq-kv_auto-tp2 |" in text
    assert "Missing of 2" not in text


@pytest.mark.parametrize("text", ["a,b\n", f"{HEAD}\n1,g,m\n", f"{HEAD}\n1,g,m,bf16,auto,two,,,\n", f"{HEAD}\n1,g,m,bf16,auto,1,,,,,\n"])
def test_a_broken_row_is_said_in_a_line(tmp_path: Path, text: str) -> None:
    (tmp_path / WANTED).write_text(text)
    with pytest.raises(UserError, match=r"wanted\.csv.*expected") as caught:
        wanted(tmp_path)
    assert "\n" not in str(caught.value)


def test_nothing_wanted_says_nothing(models: Path) -> None:
    assert matrix(models) == ""
    assert "missing" not in readme(models)


def test_a_repeat_is_nowhere_from_itself_and_gets_the_blocks_that_were_predicted(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "## Repeats" not in readme(models)
    measurements = OWNER.with_suffix("")
    assert main([f"profile={measurements}.json", f"models={models}"]) == 0
    assert "bf16-kv_auto-tp1-another" in capsys.readouterr().out
    text = (models / "README.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| h100-sxm/r1-distill-qwen-7b/bf16-kv_auto-tp1-another "))
    assert row.endswith("| +0.0% / 0.0% / +0.0% | +0.0% / 0.0% / +0.0% | +0.0% / 0.0% / +0.0% | +0.0% / 0.0% / +0.0% | 66,911 | 66,911 |")
    assert find("h100-sxm", "r1-distill-qwen-7b", root=models) == models / OWNER.relative_to(MODELS)


def test_the_page_is_written_anew_without_a_measurement(models: Path) -> None:
    assert main([f"models={models}"]) == 0
    assert (models / "README.md").read_text() == readme(models)


@pytest.mark.parametrize("arguments", [["x"], ["as=A b"], ["as=../x"], ["profile=nowhere"], ["models=nowhere"], ["x=1"]])
def test_mistakes_are_told_in_a_line(arguments: list[str], models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, f"models={models}"] if "models=nowhere" not in arguments else arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_measurements_of_another_engine_find_no_place(models: Path) -> None:
    other = Raw.read(MODELS / "h100-sxm" / "r1-distill-qwen-32b" / "awq-kv_auto-tp1.json")
    with pytest.raises(UserError, match="no cost model for h100-sxm/r1-distill-qwen-32b/awq"):
        keep(other, "another", models)


def test_blocks_are_predicted_from_another_start() -> None:
    """Of every shipped cost model that has one: within a block of what vLLM reported."""
    rows = [line.split(" | ") for line in (MODELS / "README.md").read_text().split("## Errors")[1].split("## Repeats")[0].splitlines()]
    pairs = [(row[-2], row[-1].rstrip(" |")) for row in rows if row[0].startswith(("| h100-sxm/", "| h200-sxm/"))]
    foreseen = [(predicted, reported) for predicted, reported in pairs if predicted[0] not in "(–"]
    assert len(foreseen) >= 6
    for predicted, reported in foreseen:
        assert int(predicted.replace(",", "")) == pytest.approx(int(reported.replace(",", "")), rel=0.005)
