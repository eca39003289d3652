"""Contexts of the sequences that decode in the recorded steps, where the steps do not tell them: found from the requests' latencies."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.artifacts.attention import SHARES, Attention
from simulator.request import RequestTable
from simulator.step.idle import FEWER
from simulator.workload.base import NS_PER_S

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Decodes:
    """In which steps of an engine each request decoded, in the order of arrival, which is that of vLLM's running list.

    Between its first token and its last a context grows evenly. A request that had not ended when the trace was cut decodes to the end.
    """

    first: Int64
    """int64[n]: index of the first such step."""
    end: Int64
    """int64[n]: index after the last one."""
    prompt_tokens: Int64
    output_tokens: Int64

    @classmethod
    def of(cls, steps: pd.DataFrame, requests: RequestTable, latencies: dict[str, Float64], replica: int, num_replicas: int) -> Decodes:
        """Of one replica's steps. Which requests were its own is not recorded: they are dealt out in turn.

        `latencies`: the measured `first_token_s` and `e2e_s`, float64[n], NaN: not by then; `received_tokens`, if the trace was cut.
        """
        first_s, e2e_s = latencies["first_token_s"], latencies["e2e_s"]
        its = np.flatnonzero(np.isfinite(first_s))
        its = its[its % num_replicas == replica]
        update_s, arrival_s = steps["update_s"].to_numpy(np.float64), requests.arrival_ns[its] / NS_PER_S
        first = np.searchsorted(update_s, arrival_s + first_s[its])
        end = np.searchsorted(update_s, arrival_s + np.where(np.isnan(e2e_s[its]), np.inf, e2e_s[its]))
        output_tokens = requests.output_tokens
        if "received_tokens" in latencies:
            output_tokens = np.where(np.isnan(e2e_s), np.nan_to_num(latencies["received_tokens"]), output_tokens).astype(np.int64)
        return cls(first, end, requests.prompt_tokens[its], output_tokens[its])

    def longest(self, steps: pd.DataFrame) -> Int64:
        """int64[k]: the longest context of each step, as recorded where it was."""
        if "decode_context_max_tokens" in steps:
            recorded: Int64 = steps["decode_context_max_tokens"].to_numpy(np.int64)
            return recorded
        longest = np.zeros(len(steps))
        for low, high, prompt, output in zip(self.first, self.end, self.prompt_tokens, self.output_tokens, strict=True):
            longest[low:high] = np.maximum(longest[low:high], prompt + np.linspace(1, output, high - low))
        least = steps["decode_context_tokens"].to_numpy() / np.maximum(steps["decode_seqs"].to_numpy(), 1)
        return np.rint(np.where(steps["decode_seqs"] > 0, np.maximum(longest, least), 0)).astype(np.int64)

    def idle_tokens(self, steps: pd.DataFrame, attention: Attention | None) -> Int64:
        """int64[k]: `StepFeatures.decode_idle_tokens` of each step, looked at as often as the simulator does (`simulator/step/idle.py`)."""
        share = np.zeros(len(steps), np.int64)
        if attention is not None:
            due = 0
            decode_seqs = steps["decode_seqs"].tolist()
            changes = np.unique(np.concatenate([self.first, self.end]).clip(max=len(steps) - 1))
            for begin, end in pairwise([*changes.tolist(), len(steps)]):
                step = max(begin, due)
                while step < end:
                    # Of those that were preempted and wait nothing is recorded; vLLM takes the last to arrive.
                    contexts = self._contexts(step)[: decode_seqs[step]]
                    share[step:] = attention.idle_share(contexts)
                    due = step + len(contexts) // FEWER
                    step = max(step + attention.block_tokens, due)
        idle: Int64 = steps["decode_context_tokens"].to_numpy(np.int64) * share // SHARES
        return idle

    def _contexts(self, step: int) -> list[int]:
        """Tokens of the sequences that decode in the step."""
        its = np.flatnonzero((self.first <= step) & (step < self.end))
        grown = (step - self.first[its]) / np.maximum(self.end[its] - self.first[its] - 1, 1)
        contexts = self.prompt_tokens[its] + 1 + np.rint(grown * (self.output_tokens[its] - 1))
        return list(map(int, contexts))
