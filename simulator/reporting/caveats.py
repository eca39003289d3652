"""What a reader should beware of, in a few words each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from simulator.plan import Plan
    from simulator.planning.candidate import Candidate

ON_TIME_TOKENS_PER_S, LATE_TOKENS_PER_S = 8_000, 13_000
"""Output of an engine that one API server passed on without delay, and that came to the client seconds late: as it rose in the trace
`h200-r1-distill-qwen-7b-bf16-http-full` (vLLM 0.26, streaming over HTTP)."""


def caveats(plan: Plan) -> list[str]:
    """Of the chosen size, or else of the largest that was tried."""
    found = list(plan.caveats)
    if not plan.settled:
        found.append("the service had not settled at the end of the warm-up: give a longer plan.hours")
    judged = plan.chosen or next(reversed(plan.candidates.values()), None)
    if judged is not None:
        rejected, sent = sum(trial.rejected for trial in judged.trials), sum(trial.simulated_requests for trial in judged.trials)
        if rejected:
            found.append(f"{rejected / (rejected + sent):.2%} of the prompts reach max_model_len and are rejected")
        preempted = sum(trial.preemptions for trial in judged.trials)
        if preempted:
            found.append(f"{preempted:,} preemptions: the KV cache is full at times, and answers are computed twice")
        found += api_server(_emitted_tokens_per_s(plan, judged))
    return found


def api_server(tokens_per_s: float) -> list[str]:
    """That vLLM's API server may fall behind, which is not simulated; empty where it was measured to keep up.

    Args:
        tokens_per_s: output of one engine.
    """
    if tokens_per_s <= ON_TIME_TOKENS_PER_S:
        return []
    measured = f"one was on time at {ON_TIME_TOKENS_PER_S:,} and seconds late at {LATE_TOKENS_PER_S:,} (--api-server-count)"
    return [f"a replica emits {tokens_per_s:,.0f} tokens/s, and what vLLM's API server adds is not simulated: {measured}"]


def _emitted_tokens_per_s(plan: Plan, judged: Candidate) -> float:
    """Of one replica, of those that answer."""
    split = plan.question.split(judged.num_replicas)
    answering = judged.num_replicas - (split.prefill_replicas if split else 0) + sum(pool.num_replicas for pool in plan.question.others)
    return float(np.mean([trial.output_tokens_per_s for trial in judged.trials])) / answering
