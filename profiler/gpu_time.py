"""The GPU time of a step, learned from a profile: a table for the matrix products, physical terms for the rest."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from profiler.attention import ChunkAttention, heads_of
from profiler.fit import Mode, StepTimeRegressor
from profiler.profiled import Profiled
from profiler.tables import SHAPES, Prior, Table

Float64 = NDArray[np.float64]

IN_STEP = "decode_in_step_seqs"
"""Multiprocessors that read equally long contexts begin and end their pieces of work at the same moments, and the memory's bus is idle
between. That costs some microseconds a sequence, which traffic's contexts do not: they are of all lengths, in no order."""

IN_STEP_TOKENS, IN_STEP_SEQS = 50, 128
"""Expected of that time: as long as reading so many tokens (40 to 103, in profiles that tell). One that is off by a step's time, with so
many sequences, weighs like a step that is off by as much: of profiles with hardly any but equal contexts, that decides."""

TERMS = (
    # Before the sequences: where each has equally many drafts the fit cannot tell them apart, and lets the first stand for both. A model's
    # profile without drafts says that its sequences alone cost nothing up to 64.
    "verify_tokens",
    # The product with the vocabulary, and what attention does once a sequence.
    "decode_seqs",
    "decode_seqs[64:]",
    "decode_seqs[256:]",
    "prefill_seqs",
    # Attention of decoding sequences: keys and values read; small totals do not fill the memory bus; the longest is the last to end.
    "decode_context_tokens",
    "decode_context_tokens[:32768]",
    "decode_context_max_tokens",
    "decode_idle_tokens",
    IN_STEP,
    # Attention of prompts: pairs of tokens, keys and values read.
    "prefill_attention_tokens",
    "prefill_context_tokens",
)
"""Terms of all graph modes, beside the table of padded sizes: the kernels are the same."""

BESIDE_A_PROMPT = "prefill_seqs[:1]"
"""1 in steps with a prompt, else 0."""

BESIDE_PROMPTS = tuple(
    f"{BESIDE_A_PROMPT}*{term}" for term in ("decode_context_tokens", "decode_context_max_tokens[:1024]", "decode_seqs", "decode_seqs[64:]")
)
"""Beside a prompt, decoding sequences are computed by attention kernels with large tiles: slower, and not split for short contexts.
Batches beyond the captured sizes that only decode are not."""

MODE_TERMS: Mapping[Mode, tuple[str, ...]] = {"none": ("one", *BESIDE_PROMPTS), "piecewise": ("one", *BESIDE_PROMPTS), "full": ()}


def fit_gpu_time(rows: Profiled) -> StepTimeRegressor:
    """The model fitted to `rows`, all with a GPU time.

    The first fit finds sizes with a kernel that is far slower than their neighbours' (pits), and entries of the table that the line
    between their neighbours says as well; the second takes both out.
    """
    chunk_attention = ChunkAttention(*heads_of(rows.meta))
    sizes, times_ns = rows.table["padded_tokens"].to_numpy(np.int64), rows.table["gpu_ns"].to_numpy(np.float64)

    def fitted(table: Table) -> StepTimeRegressor:
        at_ns = np.interp(chunk_attention.chunks, table.knots, table.about_ns).tolist()
        terms = (*table.terms, *TERMS, *chunk_attention.terms)
        priors = (*table.priors, *chunk_attention.priors(at_ns), _in_step(table))
        model = StepTimeRegressor(terms, MODE_TERMS, window=1, priors=priors, latent=tuple(SHAPES))
        return model.fit(rows.matrix, times_ns)

    table = Table.of(sizes, times_ns)
    coefficients = fitted(table).coef_.tolist()
    return fitted(Table.of(sizes, times_ns, table.pits_in(coefficients), table.straight_in(coefficients)))


def _in_step(table: Table) -> Prior:
    weight = IN_STEP_SEQS / float(np.interp(IN_STEP_SEQS, table.knots, table.about_ns))
    return (IN_STEP, weight), ("decode_context_tokens", -weight * IN_STEP_TOKENS)
