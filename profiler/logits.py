"""Logits as a reasoning model has them, for measuring the sampler.

The top-p sampler searches for the least probable token it keeps, and how long that takes depends on the distribution (vLLM 0.26
`v1/sample/ops/topk_topp_triton.py`). Dummy weights give nearly equal logits, random ones a broad bell: neither is what a trained model
says.
"""

from __future__ import annotations

import math

import numpy as np
import torch

ENTROPY_MEDIAN, ENTROPY_P80 = 0.01, 0.672
"""Nats, at temperature 1, of the tokens of a reasoning model's answers: half of them lie below the first, a fifth above the second
(Qwen3-8B on AIME, arXiv 2506.01939, figure 2)."""
ENTROPY_MOST = 2.5

RUNNERS_UP = 24
"""Tokens that share what the best one leaves, each e times less likely than the one before it."""
FLOOR, SPREAD = -22.0, 2.5
"""All other tokens: mean and standard deviation, relative to the best. Together they have a probability of about 10⁻³."""

_Z80 = 0.8416
"""The normal distribution's 80 % quantile."""


def peaked_logits(rows: int, vocabulary: int, device: torch.device, seed: int = 0) -> torch.Tensor:
    """float32[rows, vocabulary]: the entropies of the rows are spread log-normally through the quantiles above."""
    random = np.random.default_rng(seed)
    generator = torch.Generator(device).manual_seed(seed)
    logits = torch.randn((rows, vocabulary), generator=generator, device=device) * SPREAD + FLOOR
    sigma = (math.log(ENTROPY_P80) - math.log(ENTROPY_MEDIAN)) / _Z80
    entropies = np.minimum(ENTROPY_MEDIAN * np.exp(sigma * random.standard_normal(rows)), ENTROPY_MOST)
    runners_up = min(RUNNERS_UP, vocabulary - 1)
    heads = torch.tensor(_heads(entropies, runners_up), dtype=logits.dtype, device=device)
    places = torch.tensor(np.array([random.choice(vocabulary, runners_up + 1, replace=False) for _ in range(rows)]), device=device)
    return logits.scatter_(1, places, heads)


def _heads(entropies: np.ndarray, runners_up: int) -> np.ndarray:
    """float64[rows, 1 + runners_up]: the best token's logit, 0, and those of the runners-up, at the gap that gives each entropy."""
    gaps = np.linspace(0.0, 16.0, 400)
    ladders = np.concatenate([np.zeros((len(gaps), 1)), -gaps[:, None] - np.arange(runners_up)], axis=1)
    shares = np.exp(ladders)
    shares /= shares.sum(axis=1, keepdims=True)
    entropy_of_gap = -(shares * np.log(shares)).sum(axis=1)
    # Entropy falls with the gap; `interp` wants rising abscissae.
    gap = np.interp(entropies, entropy_of_gap[::-1], gaps[::-1])
    return np.concatenate([np.zeros((len(gap), 1)), -gap[:, None] - np.arange(runners_up)], axis=1)
