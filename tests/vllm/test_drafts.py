"""An engine that speculates, on vLLM's CPU build: profile, fit, simulate."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from profiler.export import export
from profiler.fit_profile import fit_profile
from profiler.raw import Raw
from simulator.compose import CONF
from simulator.config import load
from simulator.simulate import simulate

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(300)]

OPT = ("model=tiny", "gpu=cpu", "opt=draft_model", "opt.speculative.draft=tiny", "opt.weights=float32")
DRAFTS, EMITTED = 3, 2.5
"""Of a sequence and step: drafts verified, and tokens emitted, as conf/opt/draft_model.yaml has vLLM accept them."""


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("profile")
    sizes = ("max_model_len=1024", "max_num_seqs=8", "max_num_batched_tokens=512", "kinds=[decode,prefill,mixed]", "budget_s=240")
    done = subprocess.run([sys.executable, "-m", "profiler", *OPT, *sizes, f"out={out}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def test_a_step_verifies_all_drafts(profile: Path) -> None:
    steps = pd.read_csv(profile / "steps.csv.gz")
    decode = steps[(steps["kind"] == "decode") & (steps["decode_seqs"] > 0)]
    assert set(decode["decode_seqs"]) == {1, 4}
    assert (decode["verify_tokens"] == DRAFTS * decode["decode_seqs"]).all()
    assert decode["emitted_tokens"].between(decode["decode_seqs"], (1 + DRAFTS) * decode["decode_seqs"]).all()


def test_a_profile_with_drafts_becomes_a_prediction(profile: Path, tmp_path: Path) -> None:
    """CPU times wander, so of times only the order of magnitude is asked: the chain holds together."""
    artifact, report = fit_profile(Raw.read(profile))
    assert artifact.speculation == "draft_model-k3"
    assert "decode steps, in-sample" in report
    path = export(artifact, tmp_path)
    traffic = ("workload.arrivals.rate=3", "workload.lengths.max_tokens=64", "run.duration_s=20", "cluster.num_replicas=1")
    overrides = [*OPT, *traffic, "slo=null", f"cost_model={path}", f"acceptance.length={EMITTED}"]
    served = simulate(load(CONF / "simulate.yaml", overrides).scenario())
    _, _, first_step, last_step = served.logs[0].segments.T
    chunks = int((last_step - first_step + 1).sum()) - len(served.requests)
    assert (served.emitted_tokens == served.requests.output_tokens).all()
    assert (served.emitted_tokens.sum() - len(served.requests)) / chunks == pytest.approx(EMITTED, rel=0.1)
    steps = pd.read_csv(profile / "steps.csv.gz")
    slowest_s, fastest_s = (steps.loc[steps["kind"] == "decode", "gpu_s"].quantile(share) for share in (0.95, 0.05))
    token_s = np.median((served.finish_ns - served.first_token_ns) / 1e9 / (served.requests.output_tokens - 1))
    assert fastest_s / 10 < EMITTED * token_s < 10 * slowest_s
