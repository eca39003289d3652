"""Traces with prefix caching: a replay finds in its cache what the engine found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from validation.__main__ import TRACES
from validation.compare import Comparison, compare
from validation.replay import Recording, replay
from validation.table import as_json, as_text

SHIPPED = TRACES / "h100-r1-distill-qwen-7b-bf16-gamma"
HEAD_TOKENS = 100
CACHED_TOKENS = 96
"""Whole blocks of 16 tokens."""


def write(folder: Path, **changes: Any) -> Path:
    """120 requests of the shipped trace, three of four of which share one of three heads; the cache had all but each head's first."""
    rows = pd.read_csv(SHIPPED / "requests.csv.gz", dtype={"request_id": str}).head(120)
    shares = rows.index % 4 < 3
    rows["arrival_s"] = rows.index * 0.5  # no head is asked for while it is computed
    rows.loc[shares, "prompt_tokens"] += HEAD_TOKENS
    rows["prefix_id"], rows["prefix_tokens"] = (rows.index % 3).astype(str).where(shares, ""), shares * HEAD_TOKENS
    rows["cached_tokens"] = (shares & (rows.index >= 3)) * CACHED_TOKENS
    folder.mkdir()
    rows.to_csv(folder / "requests.csv.gz", index=False)
    meta = json.loads((SHIPPED / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"prefix_caching": True} | changes))
    return folder


def compared(folder: Path) -> Comparison:
    return compare(replay(Recording.read(folder), cost_model=None, router=None, seed=0))


def test_shared_heads_are_found_as_the_engine_found_them(tmp_path: Path) -> None:
    comparison = compared(write(tmp_path / "trace"))
    cache = comparison.prefix_cache
    assert cache is not None
    assert cache.measured_hits == cache.simulated_hits == (90 - 3) * CACHED_TOKENS
    assert cache.same_requests == cache.requests == 120
    told = as_json(comparison)["prefix_cache"]
    assert told["simulated_hits"] == cache.simulated_hits
    assert "as many in 120 of 120 requests" in as_text(comparison)


def test_without_caching_every_prompt_is_computed(tmp_path: Path) -> None:
    cached, plain = compared(write(tmp_path / "cached")), compared(write(tmp_path / "plain", prefix_caching=False))
    assert plain.prefix_cache is None
    assert plain.replay.result.cached_tokens.sum() == 0
    assert cached.simulated["ttft_s"].mean() < plain.simulated["ttft_s"].mean()


def test_every_replica_has_a_cache_of_its_own(tmp_path: Path) -> None:
    """Behind a router that takes turns, each of three heads comes to both of them, and is computed twice."""
    comparison = compared(write(tmp_path / "two", num_gpus=2, router="round_robin"))
    assert comparison.prefix_cache is not None
    assert comparison.prefix_cache.simulated_hits == (90 - 2 * 3) * CACHED_TOKENS
    assert comparison.prefix_cache.same_requests == 120 - 3


@pytest.mark.parametrize("option", [{"long_prefill_token_threshold": 64}, {"enforce_eager": True}])
def test_the_engine_is_replayed_with_its_options(tmp_path: Path, option: dict[str, Any]) -> None:
    engine = json.loads((SHIPPED / "meta.json").read_text())["engine"]
    replayed = replay(Recording.read(write(tmp_path / "trace", engine=engine | option)), cost_model=None, router=None, seed=0)
    (name, value), *_ = option.items()
    assert getattr(replayed.result.scenario.engine, name) == value
