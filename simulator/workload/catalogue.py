"""The shipped catalogue of arrivals and lengths: published and fitted figures, each with its source and tier.

Tiers: A per-request token counts; B words converted to tokens; C matched to a published mean and variance;
D published mean, borrowed sigma.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from simulator.workload.base import suggest

DATA = Path(__file__).parent / "data"

PROMPT_SETS = {"aime24_25": ("aime24", "aime25")}
"""Data sets of the length catalogue whose questions are counted under other names."""

BOXED_SUFFIX_SETS = ("aime24", "aime25", "aime24_25", "gpqa_diamond", "gsm8k", "math500")
"""Data sets whose questions end in an instruction to reason step by step and to box the answer."""


@cache
def catalogue() -> dict[str, Any]:
    """`data/catalogue.json`."""
    loaded: dict[str, Any] = json.loads((DATA / "catalogue.json").read_text(encoding="utf-8"))
    return loaded


@cache
def prompt_counts() -> dict[str, Any]:
    """`data/prompt_token_counts.json`: lengths of real questions in Qwen tokens, a list a data set."""
    loaded: dict[str, Any] = json.loads((DATA / "prompt_token_counts.json").read_text(encoding="utf-8"))
    return loaded


def preset_names() -> list[str]:
    """Names of the arrival presets."""
    return list(catalogue()["arrivals"])


def arrival_preset(name: str) -> dict[str, Any]:
    """The arrival preset `name`.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in catalogue()["arrivals"]:
        raise ValueError(f"unknown preset '{name}'; valid: {', '.join(preset_names())}")
    found: dict[str, Any] = catalogue()["arrivals"][name]
    return found


def length_names() -> list[str]:
    """Names of the length entries, `model/dataset`."""
    return list(catalogue()["lengths"])


def length_entry(name: str) -> dict[str, Any]:
    """The length entry `name` (`model/dataset`).

    Raises:
        ValueError: there is none of that name; names the closest ones.
    """
    entries = catalogue()["lengths"]
    if name not in entries:
        raise ValueError(f"the catalogue has no '{name}'; {_near(name)}")
    found: dict[str, Any] = entries[name]
    return found


def _near(name: str) -> str:
    model, slash, dataset = name.partition("/")
    datasets = [known.partition("/")[2] for known in length_names() if known.startswith(f"{model}/")]
    if datasets and slash and dataset:
        return f"of {model} it has: {', '.join(datasets)}"
    if datasets:
        return f"write model/dataset; of {model} it has: {', '.join(datasets)}"
    like = suggest(name, length_names())
    if like.startswith("did"):
        return like
    return f"names are model/dataset; models: {', '.join(dict.fromkeys(known.partition('/')[0] for known in length_names()))}"


def question_tokens(dataset: str) -> tuple[int, ...]:
    """Token counts of the data set's questions, without instruction or chat template; empty where none are shipped."""
    return tuple(tokens for name in PROMPT_SETS.get(dataset, (dataset,)) for tokens in prompt_counts().get(name, ()))


def instruction_tokens(dataset: str) -> int:
    """Tokens of the instruction that follows each question of the data set."""
    return int(prompt_counts()["boxed_suffix_tokens"]) if dataset in BOXED_SUFFIX_SETS else 0
