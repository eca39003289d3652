"""Points beside the grid, on vLLM's CPU build: sequences that share the heads of their prompts, and prompts for seconds."""

import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.profiling import command

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    out = tmp_path_factory.mktemp("profile")
    sizes = ("max_model_len=4096", "max_num_seqs=96", "max_num_batched_tokens=2048")
    arguments = command("opt=prefix_caching", "kinds=[shared,sustained]", f"out={out}", "budget_s=600", *sizes)
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return pd.read_csv(Path(out) / "steps.csv.gz")


def test_heads_are_held_once_and_read_by_all(steps: pd.DataFrame) -> None:
    sharing = steps[steps["kind"] == "shared"]
    asked = sharing["point"].str.extract(r" (?P<batch>\d+)×\d+ traffic\+(?P<heads>\d+)×(?P<tokens>\d+)@0").astype(int)
    assert (sharing["decode_seqs"] == asked["batch"]).all()
    assert (sharing["prefill_seqs"] == 0).all()
    shared_tokens = (asked["batch"] - asked["heads"]) * asked["tokens"]
    both = sharing.assign(kind=(sharing["decode_shared_tokens"] == shared_tokens).map({True: "shared", False: "apart"}))
    columns = ["kv_usage", "decode_context_tokens"]
    by_kind = both.groupby(["kind", "point"])[columns].median()
    shared, apart = by_kind.loc["shared"], by_kind.loc["apart"]
    assert len(shared) >= 2
    assert shared.index.equals(apart.index)
    contexts = apart["decode_context_tokens"].to_numpy()
    assert shared["decode_context_tokens"].to_numpy() == pytest.approx(contexts, rel=0.05)
    assert (shared["kv_usage"] < 0.8 * apart["kv_usage"]).all()


def test_prompts_follow_one_another(steps: pd.DataFrame) -> None:
    prompts = steps[steps["kind"] == "sustained"]
    assert (prompts["prefill_seqs"] == 1).all()
    alone, beside = prompts["decode_seqs"] == 0, prompts["decode_seqs"] == 64
    assert (alone | beside).all()
    assert alone.sum() > 1 < beside.sum()
    assert prompts[alone]["gpu_s"].sum() > 2.0
    # Decodes lie between two prompts: the next is chosen later than when the one before is done.
    begun_s, took_s = prompts[beside]["schedule_s"].to_numpy(), prompts[beside]["gpu_s"].to_numpy()
    assert (np.diff(begun_s) > 1.1 * took_s[:-1]).all()
