"""Prompts with something in common: system prompts that many requests begin with, and several samples of one prompt."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np
from pydantic import Field

from simulator.prefix.content import NOBODY, PromptContent
from simulator.request import RequestTable
from simulator.workload.base import Int64, Spec, stream
from simulator.workload.lengths import Scores

BETWEEN_PROMPTS, WITHIN_PROMPT = 0.62, 0.16
"""Log-variance of output lengths between prompts, and between repeated samples of one prompt."""


class SharedPrompts(Spec):
    """System prompts, put before the prompts of the lengths."""

    shared_prompt_tokens: int = Field(ge=1)
    num_shared_prompts: int = Field(1, ge=1)
    popularity: float = Field(0.0, ge=0)
    """Zipf's exponent: the k-th prompt is used in proportion to 1 / k^popularity; 0: all alike."""
    share: float = Field(1.0, ge=0, le=1)
    """Of requests that begin with one of them."""

    def choose(self, num: int, seed: int) -> Int64:
        """int64[num]: the prompt that each request begins with, `NOBODY` for none."""
        weights = 1 / np.arange(1, self.num_shared_prompts + 1) ** self.popularity
        edges = np.cumsum(weights) / weights.sum()
        chosen = np.searchsorted(edges, stream(seed, "shared prompt").random(num), side="right").astype(np.int64)
        return np.where(stream(seed, "shared prompt/has one").random(num) < self.share, np.minimum(chosen, len(edges) - 1), NOBODY)

    def describe(self) -> str:
        """A few words."""
        which = "one system prompt" if self.num_shared_prompts == 1 else f"{self.num_shared_prompts} system prompts"
        return f"{which} of {self.shared_prompt_tokens:,} tokens before {self.share:.0%} of prompts"


def with_heads(table: RequestTable, shared: SharedPrompts | None, seed: int, samples: int = 1) -> RequestTable:
    """The table with system prompts before its prompts; each `samples` rows after one another are samples of one prompt."""
    if shared is None and samples == 1:
        return table
    num_prompts = -(-len(table) // samples)
    which = np.full(num_prompts, NOBODY) if shared is None else shared.choose(num_prompts, seed)
    which = np.repeat(which, samples)[: len(table)]
    head_tokens = 0 if shared is None else shared.shared_prompt_tokens
    heads = np.where(which == NOBODY, 0, head_tokens)
    first_own = 0 if shared is None else shared.num_shared_prompts
    segments = [[(int(head), int(tokens))] if tokens else [] for head, tokens in zip(which, heads, strict=True)]
    if samples > 1:
        for row, (own, tokens) in enumerate(zip(np.arange(len(table)) // samples, table.prompt_tokens.tolist(), strict=True)):
            segments[row].append((first_own + int(own), tokens))
    return replace(table, prompt_tokens=table.prompt_tokens + heads, content=PromptContent.build(segments))


def of_samples(scores: Scores, samples: int, seed: int) -> Scores:
    """The scores, changed so that each `samples` rows after one another are samples of one prompt, and their outputs alike."""
    if samples == 1:
        return scores
    num = len(scores.output)
    # What a prompt has is that of the row with its own number: so the i-th prompt is the same for any number of samples.
    prompt = np.arange(num) // samples
    between = sqrt(BETWEEN_PROMPTS / (BETWEEN_PROMPTS + WITHIN_PROMPT))
    own = stream(seed, "sample of a prompt").standard_normal(num)
    output = between * scores.output[prompt] + sqrt(1 - between**2) * own
    return replace(scores, prompt=scores.prompt[prompt], output=output, part=scores.part[prompt])
