"""The profiler as a command, on vLLM's CPU build with a tiny model."""

import re
import sys

import pandas as pd

ENGINE = ("model=tiny", "gpu=cpu", "opt.weights=float32", "max_model_len=1024", "max_num_seqs=32", "max_num_batched_tokens=1024")
START_S = 150
"""For an engine to start on a busy machine."""


def command(*arguments: str, module: str = "profiler") -> list[str]:
    return [sys.executable, "-m", module, *ENGINE, *arguments]


def last_line(text: str) -> str:
    # vLLM's own log, and what nanobind says when the interpreter ends, stand around it.
    ours = [
        line
        for line in re.split(r"[\r\n]", text)
        if line.strip() and "nanobind" not in line and " - " not in line and "See http" not in line
    ]
    return ours[-1]


def computed_tokens(steps: pd.DataFrame) -> int:
    """Of prompts and outputs together: the last token of a prompt, where no other is left for its chunk, looks like a decode."""
    return int(steps["prefill_tokens"].sum() + steps["decode_tokens"].sum())


def fed_tokens(requests: pd.DataFrame) -> int:
    """What an engine that preempts nothing and finds nothing in a cache computes: all but the last token of each output."""
    return int(requests["prompt_tokens"].sum() + (requests["output_tokens"] - 1).sum())
