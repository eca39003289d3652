"""How multiprocessors share the attention of a profile's steps: from the contexts of each point, which its name tells."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from profiler.attention import MULTIPROCESSORS, heads_of
from profiler.points import Point
from simulator.artifacts.attention import SHARES, Attention

NEARLY = 0.03
"""Relative distance of two contexts, up to which a multiprocessor reads both in about the same time."""


def attention_of(meta: Mapping[str, Any]) -> Attention | None:
    """Of the profiled model on one of its GPUs; None: not measured on a GPU."""
    if meta["gpu"] == "cpu":
        return None
    _, kv_heads = heads_of(meta)
    return Attention(kv_heads=kv_heads, multiprocessors=MULTIPROCESSORS)


def idle_tokens(steps: pd.DataFrame, attention: Attention | None) -> NDArray[np.int64]:
    """int64[k]: `StepFeatures.decode_idle_tokens` of measured steps."""
    if attention is None:
        return np.zeros(len(steps), np.int64)
    columns = steps["point"], steps["decode_seqs"], steps["decode_context_tokens"]
    return np.array([_idle_tokens(_begun(name)[:n], int(tokens), attention) for name, n, tokens in zip(*columns, strict=True)], np.int64)


def in_step_seqs(steps: pd.DataFrame, attention: Attention | None) -> NDArray[np.int64]:
    """int64[k]: `StepFeatures.decode_in_step_seqs` of measured steps; beside a prompt other kernels run, which do not keep step."""
    if attention is None:
        return np.zeros(len(steps), np.int64)
    columns = steps["point"], steps["decode_seqs"], steps["prefill_seqs"]
    return np.array([0 if prompts else in_step(_begun(name)[:n]) for name, n, prompts in zip(*columns, strict=True)], np.int64)


@cache
def in_step(contexts: tuple[int, ...]) -> int:
    """Sequences beside one that is nearly as long."""
    if len(contexts) < 2:
        return 0
    near = abs(np.diff(np.log(contexts))) < NEARLY
    return int((np.append(near, False) | np.append(False, near)).sum())


@cache
def _begun(name: str) -> tuple[int, ...]:
    """Contexts with which the sequences of the point of that name begin; a mixed point's prompts decode once they are computed."""
    point = Point.parse(name)
    return (*point.contexts, *([point.start + point.chunk] * point.num_chunks))


def _idle_tokens(begun: tuple[int, ...], context_tokens: int, attention: Attention) -> int:
    """Sequences have all grown by as much since the point began."""
    if not begun:
        return 0
    grown = (context_tokens - sum(begun)) // len(begun)
    return context_tokens * attention.idle_share([max(context + grown, 1) for context in begun]) // SHARES
