"""What launches and the ways to the client take in service, read off calibrations."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from profiler.fit_profile import fit_profile
from profiler.profiled import from_raw
from profiler.raw import Raw
from profiler.service import SERVICE, Service, read_service
from simulator.artifacts.models import MODELS
from simulator.errors import UserError

SHIPPED = MODELS / "h100-sxm" / SERVICE
NAME = "r1-distill-qwen-7b-bf16"


@pytest.fixture
def calibrations(tmp_path: Path) -> Path:
    """A folder with one calibration, to be changed."""
    shutil.copytree(SHIPPED / NAME, tmp_path / NAME)
    return tmp_path


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Service:
    """What that calibration says unchanged."""
    folder = tmp_path_factory.mktemp("shipped")
    shutil.copytree(SHIPPED / NAME, folder / NAME)
    return read_service(folder, MODELS)


def change(path: Path, **changed: object) -> None:
    table = pd.read_csv(path)
    table.assign(**changed).to_csv(path, index=False)


def scale(path: Path, factor: float, *columns: str) -> None:
    table = pd.read_csv(path)
    change(path, **{column: table[column] * factor for column in columns})


def test_launches_take_somewhat_longer_in_service(before: Service) -> None:
    ratios = before.engine.ratio
    assert set(ratios) == {"none", "piecewise", "full"}
    assert all(1.0 < ratio < 1.5 for ratio in ratios.values())


def test_twice_as_slow_is_twice_the_ratio_and_twice_the_way(calibrations: Path, before: Service) -> None:
    scale(calibrations / NAME / "steps.csv.gz", 2, "schedule_s", "update_s", "launch_s", "schedule_cpu_s")
    scale(calibrations / NAME / "requests.csv.gz", 2, "arrival_s", "ttft_s")
    after = read_service(calibrations, MODELS)
    assert after.engine.ratio == pytest.approx({mode: 2 * ratio for mode, ratio in before.engine.ratio.items()})
    assert after.overheads.egress_per_seq_ns == pytest.approx(2 * before.overheads.egress_per_seq_ns, abs=2)


def test_a_slower_host_is_no_part_of_what_service_adds(calibrations: Path, before: Service, tmp_path: Path) -> None:
    """Its launches are told apart from the service's by what was timed on both hosts."""
    models = tmp_path / "models"
    profile = Path("h100-sxm") / "r1-distill-qwen-7b" / "bf16-kv_auto-tp1.json"
    (models / profile).parent.mkdir(parents=True)
    raw = Raw.read(MODELS / profile)
    told = raw.meta | {"machine": raw.meta["machine"] | {"python_us": 30.0, "launch_us": 2.0}}
    replace(raw, profile_json=json.dumps(told)).write(models / profile)
    meta = calibrations / NAME / "meta.json"
    for host, slower in (({"python_us": 60.0, "launch_us": 4.0}, 2.0), ({"launch_us": 3.0}, 1.5), ({}, 1.0)):
        meta.write_text(json.dumps(json.loads(meta.read_text()) | {"host": host}))
        after = read_service(calibrations, models).engine.ratio
        assert after == pytest.approx({mode: ratio / slower for mode, ratio in before.engine.ratio.items()})


def test_a_way_that_grows_with_the_batch_is_found(calibrations: Path, before: Service) -> None:
    requests, steps = (calibrations / NAME / f"{table}.csv.gz" for table in ("requests", "steps"))
    change(requests, ttft_s=pd.read_csv(requests)["ttft_s"] + 1e-3)
    later = read_service(calibrations, MODELS).overheads
    assert later.egress_ns - before.overheads.egress_ns == pytest.approx(1_000_000, abs=2_000)
    assert later.egress_per_seq_ns == pytest.approx(before.overheads.egress_per_seq_ns, abs=2)
    assert pd.read_csv(steps)["decode_seqs"].max() > 100


def test_calibrations_count_together(tmp_path: Path) -> None:
    both = read_service(SHIPPED, MODELS).engine.ratio
    alone = []
    for path in sorted(SHIPPED.iterdir()):
        shutil.copytree(path, tmp_path / path.name / path.name)
        alone.append(read_service(tmp_path / path.name, MODELS).engine.ratio)
    for mode, ratio in both.items():
        assert min(each[mode] for each in alone) <= ratio <= max(each[mode] for each in alone)


def test_what_is_missing_is_said_in_one_line(calibrations: Path, tmp_path: Path) -> None:
    def fails(folder: Path, models: Path, match: str) -> None:
        with pytest.raises(UserError, match=match) as caught:
            read_service(folder, models)
        assert "\n" not in str(caught.value)

    fails(tmp_path / "empty", MODELS, "no calibration")
    fails(calibrations, tmp_path, r"profile\.json\.gz is missing")
    path = calibrations / NAME / "steps.csv.gz"
    pd.read_csv(path).drop(columns="launch_s").to_csv(path, index=False)
    fails(calibrations, MODELS, "no launch_s")


def test_an_artifact_names_only_calibrations_that_are_shipped_with_it(calibrations: Path) -> None:
    raw = Raw.read(MODELS / "h100-sxm" / "r1-distill-qwen-7b" / "bf16-kv_auto-tp1.json")
    with pytest.raises(UserError, match="must lie below models="):
        fit_profile(raw, service=calibrations)


def test_validation_judges_by_other_traces() -> None:
    judged = {path.read_bytes() for path in (MODELS.parent / "validation" / "traces").glob("*/steps.csv.gz")}
    assert not judged & {path.read_bytes() for path in SHIPPED.glob("*/steps.csv.gz")}


TWO_GPUS = "r1-distill-qwen-32b-bf16-tp2"


@pytest.fixture
def two_gpus(tmp_path: Path) -> Path:
    """A calibration in which workers launch, to be changed."""
    shutil.copytree(MODELS / "h200-sxm" / SERVICE / TWO_GPUS, tmp_path / TWO_GPUS)
    return tmp_path


def test_workers_launches_are_their_own(two_gpus: Path) -> None:
    """Of an engine whose workers launch, nothing is said of one that launches itself, and the other way round."""
    found = read_service(two_gpus, MODELS)
    assert not found.engine.ratio
    assert set(found.workers.ratio) == {"none", "piecewise"}
    assert all(1.0 < ratio < 2.0 for ratio in found.workers.ratio.values())
    assert not read_service(SHIPPED, MODELS).workers.ratio


def test_slower_workers_launch_longer(two_gpus: Path) -> None:
    """The way to the worker and back is in it, too, and grows shorter where launches take more of the time between results."""
    before = read_service(two_gpus, MODELS).workers.ratio
    scale(two_gpus / TWO_GPUS / "steps.csv.gz", 1.1, "launch_s")
    after = read_service(two_gpus, MODELS).workers.ratio
    for mode, ratio in before.items():
        assert ratio < after[mode] <= 1.1 * ratio


def test_a_model_on_two_gpus_has_its_workers_launches() -> None:
    raw = Raw.read(MODELS / "h200-sxm" / "r1-distill-qwen-32b" / "bf16-kv_auto-tp2.json")
    service = MODELS / "h200-sxm" / SERVICE
    alone, served = (fit_profile(raw, service=folder)[0].step["piecewise"] for folder in (None, service))
    ratio = read_service(service, MODELS).workers.ratio["piecewise"]
    assert served.launch_ns["one"] == pytest.approx(ratio * alone.launch_ns["one"], rel=1e-3)
    assert served.hand_over_ns == alone.hand_over_ns
    assert served.launch_spread
    assert not alone.launch_spread


def test_an_engine_that_waits_for_each_step_takes_no_others_launches() -> None:
    service = read_service(MODELS / "h200-sxm" / SERVICE, MODELS)
    drafts = from_raw(Raw.read(MODELS / "h100-sxm" / "r1-distill-qwen-7b" / "bf16-kv_auto-tp1-ngram-k3.json"))
    assert not service.launches_of(drafts).ratio
    assert not service.launches_of(drafts).spread
