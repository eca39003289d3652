"""No fit sees the traces it is judged on; where one was fitted to a trace, every table says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulator.artifacts.artifact import Artifact
from simulator.artifacts.models import MODELS
from simulator.workload import read_trace
from validation.__main__ import TRACES
from validation.compare import compare
from validation.decided import DECISIONS
from validation.judged import IN_SAMPLE, Judged, cells
from validation.page import page
from validation.replay import Recording, replay
from validation.split import Split

SHIPPED = sorted(path.parent for path in TRACES.glob("*/meta.json"))
CALIBRATIONS = sorted(path.parent for path in MODELS.glob("*/service/*/meta.json"))
ARTIFACTS = [path for path in sorted(MODELS.rglob("*.json")) if "provenance" in json.loads(path.read_text())]


def recording(folder: Path) -> Recording | None:
    """None: it holds what the simulator does not model, so that nothing is judged on it."""
    from simulator.errors import UserError

    try:
        return Recording.read(folder)
    except UserError:
        return None


@pytest.mark.parametrize("path", ARTIFACTS, ids=lambda path: "/".join(path.parts[-3:]))
def test_what_was_fitted_to_a_profile_has_seen_no_trace(path: Path) -> None:
    artifact = Artifact.model_validate(json.loads(path.read_text()))
    traces = [each for folder in SHIPPED if (each := recording(folder))]
    seen = [each.meta.name for each in traces if each.is_source_of(artifact)]
    if artifact.provenance.fitted_by == "profiler.fit_trace":
        assert seen == [artifact.provenance.source]
    else:
        assert artifact.provenance.fitted_by == "profiler.fit_profile"
        assert not seen
        assert artifact.provenance.source.startswith("profile of ")


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_a_fitted_trace_is_marked_and_is_no_evidence(folder: Path) -> None:
    found = recording(folder)
    if found is None:
        pytest.skip("not modelled yet")
    judged = Judged(compare(replay(found, cost_model=None, router=None, seed=0)), Split(None, None, ""), None)
    in_sample = judged.comparison.replay.in_sample
    assert cells(judged)[0].endswith(IN_SAMPLE) == in_sample
    assert ("no evidence" in page([judged], [])) == in_sample


@pytest.mark.parametrize("calibration", CALIBRATIONS, ids=lambda folder: folder.name)
def test_what_launches_in_service_are_calibrated_on_is_no_trace(calibration: Path) -> None:
    """Every fit reads the calibrations: their traffic may be none of what it is judged on."""

    def lengths(folder: Path) -> set[tuple[int, int]]:
        requests = read_trace(folder, "measured").requests
        return set(zip(requests.prompt_tokens.tolist(), requests.output_tokens.tolist(), strict=True))

    seen = lengths(calibration)
    for folder in (*SHIPPED, *(path.parent for path in DECISIONS.glob("*/traces/*/meta.json"))):
        assert len(seen & lengths(folder)) < 0.05 * len(seen), folder.name
