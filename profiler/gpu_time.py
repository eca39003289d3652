"""The GPU time of a step, learned from a profile: a table for the matrix products, physical terms for the rest."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from profiler.fit import Mode, StepTimeRegressor
from profiler.profiled import Profiled
from profiler.tables import Table

Float64 = NDArray[np.float64]

TERMS = (
    # The product with the vocabulary, and what attention does once a sequence.
    "decode_seqs",
    "decode_seqs[64:]",
    "decode_seqs[256:]",
    "prefill_seqs",
    # Attention of decoding sequences: keys and values read; small totals do not fill the memory bus; the longest is the last to end.
    "decode_context_tokens",
    "decode_context_tokens[:32768]",
    "decode_context_max_tokens",
    # Attention of prompts: pairs of tokens, keys and values read.
    "prefill_attention_tokens",
    "prefill_context_tokens",
    "verify_tokens",
)
"""Terms of all graph modes, beside the table of padded sizes: the kernels are the same."""

CHUNKS = (0, 128, 256, 384, 512, 768, 1024, 1536)
ROUNDS = tuple(f"prefill_context_tokens*prefill_tokens[{a}:{b}:{c}]" for a, b, c in zip(CHUNKS, CHUNKS[1:], CHUNKS[2:], strict=False))
"""Attention of chunks that leave part of the GPU idle: thread blocks, of 128 rows and a head, run in rounds of one a multiprocessor."""
ROUNDS_PRIOR = 0.1
"""Weight, relative to a step with 8,192 tokens of context, with which these are expected to be 0."""

EAGER_ATTENTION = ("one", "decode_context_tokens", "decode_context_max_tokens[:1024]", "decode_seqs", "decode_seqs[64:]")
"""Beside a prompt, decoding sequences are computed by attention kernels with large tiles: slower, and not split for short contexts."""

MODE_TERMS: Mapping[Mode, tuple[str, ...]] = {"none": EAGER_ATTENTION, "piecewise": EAGER_ATTENTION, "full": ()}


def fit_gpu_time(rows: Profiled) -> StepTimeRegressor:
    """The model fitted to `rows`, all with a GPU time.

    The first fit finds sizes with a kernel that is far slower than their neighbours' (pits); the second takes them out of the table.
    """
    sizes, times_ns = rows.table["padded_tokens"].to_numpy(np.int64), rows.table["gpu_ns"].to_numpy(np.float64)

    def fitted(table: Table) -> StepTimeRegressor:
        at_ns = np.interp(CHUNKS[1:-1], table.knots, table.about_ns)
        rounds = tuple(((term, ROUNDS_PRIOR * 8192 / ns),) for term, ns in zip(ROUNDS, at_ns.tolist(), strict=True))
        model = StepTimeRegressor(terms=(*table.terms, *TERMS, *ROUNDS), mode_terms=MODE_TERMS, window=1, priors=(*table.priors, *rounds))
        return model.fit(rows.matrix, times_ns)

    table = Table.of(sizes, times_ns)
    model = fitted(table)
    pits = table.find_pits(model.coef_.tolist(), sizes)
    return fitted(Table.of(sizes, times_ns, pits)) if pits else model
