"""Reading the study's tables: its cells, and the accuracy of every model under every optimization."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

TABLES = Path(__file__).parent / "tables.csv"
SOURCE = "arXiv 2510.18672"
MODELS = {
    "RLLM-7B": "r1-distill-qwen-7b",
    "RLLM-14B": "r1-distill-qwen-14b",
    "RLLM-32B": "r1-distill-qwen-32b",
    "RLLM-70B": "r1-distill-llama-70b",
    "LLM-7B": "qwen2.5-math-7b",
    "LLM-14B": "qwen2.5-14b",
    "LLM-32B": "qwen2.5-32b",
    "LLM-70B": "llama-3.3-70b",
}
"""The study's names and this project's."""
DATASETS = {"GSM8K": "gsm8k", "MATH500": "math500", "AIME24": "aime24", "GPQA": "gpqa_diamond"}
OPTIMIZATIONS = {
    "GPTQ": ("gptq", "auto"),
    "AWQ": ("awq", "auto"),
    "FP8": ("fp8", "auto"),
    # vLLM's `--kv-cache-dtype fp8` is e4m3.
    "E4M3": ("bf16", "fp8"),
    "E5M2": ("bf16", "fp8_e5m2"),
}
"""(weights, KV-cache dtype) of those whose accuracy can differ from the plain model's: others emit the same tokens by construction."""


def cells() -> pd.DataFrame:
    """A row a cell, with this project's names in `model`, `dataset`, `weights` and `kv_cache_dtype`; other optimizations' are left out."""
    raw = pd.read_csv(TABLES)
    base = raw[raw["cfg"].str.fullmatch(r"\d+")].assign(weights="bf16", kv_cache_dtype="auto")
    # `RLLM-7B-WQ` is RLLM-7B with quantized weights.
    changed = raw[raw["cfg"].isin(OPTIMIZATIONS)].copy()
    changed["model"] = changed["model"].str.removesuffix("-WQ").str.removesuffix("-KVQ")
    changed["weights"] = [OPTIMIZATIONS[name][0] for name in changed["cfg"]]
    changed["kv_cache_dtype"] = [OPTIMIZATIONS[name][1] for name in changed["cfg"]]
    both = pd.concat([base, changed], ignore_index=True)
    return both.assign(model=both["model"].map(MODELS), dataset=both["dataset"].map(DATASETS))


def accuracies() -> pd.DataFrame:
    """Percent right by model, weights, KV-cache dtype, data set and budget, with the number of answers and the standard error of chance.

    The plain model's answers at all batch sizes count together: a batch changes no answer. The error is a binomial's, √(p(1 − p)/n), as
    if all answers were independent; they are three to each of 100 questions (30 of AIME), the same for all rows.
    """
    keys = ["model", "weights", "kv_cache_dtype", "dataset", "budget"]
    found = cells()
    found["right"] = found["acc"] / 100 * found["n_req"]
    grouped = found.groupby(keys, sort=False)
    pooled = grouped.agg(n=("n_req", "sum"), right=("right", "sum"), tables=("table", lambda names: "+".join(dict.fromkeys(names))))
    share = pooled["right"] / pooled["n"]
    error = (share * (1 - share) / pooled["n"]) ** 0.5
    pooled["accuracy"], pooled["standard_error"] = (100 * share).round(2), (100 * error).round(2)
    pooled["source"] = [f"{SOURCE}, {tables.replace('T', 'Table ')}" for tables in pooled["tables"]]
    ordered = pooled.reset_index().rename(columns={"budget": "max_tokens"})
    return ordered[["model", "weights", "kv_cache_dtype", "dataset", "max_tokens", "n", "accuracy", "standard_error", "source"]]
