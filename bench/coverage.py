"""Do the planner's intervals hold what a far longer run says?

`python -m bench.coverage [CONFIG] [GPUs …]`
Plays many runs of the given sizes, takes their pool for the truth, and counts how often the interval of a few of them holds it.
"""

from __future__ import annotations

import sys
from functools import partial

import numpy as np

from simulator.config import load
from simulator.plan import demand_of, period_of
from simulator.planning.candidate import Check, pooled
from simulator.planning.pool import Pool
from simulator.planning.sizing import Demand
from simulator.planning.steady import Period
from simulator.planning.trial import Question, Trial, run_trial

RUNS = 64
FIRST_SEED = 1000
GROUPS = 500
"""Of runs drawn from all without replacement, as a plan's own."""


def main(path: str, gpus: list[int]) -> None:
    """Prints a line a size and SLO."""
    question = Question.of(load(path))
    demand, _ = demand_of(question)
    period = period_of(question, demand)
    rng = np.random.default_rng(0)
    tasks = [(num // question.gpus_per_replica, seed) for num in gpus for seed in range(FIRST_SEED, FIRST_SEED + RUNS)]
    with Pool(partial(_run, question, demand, period), label="simulating") as pool:
        trials = pool.map(tasks)
    print(f"{RUNS} runs a size, {RUNS * period.measured_s / 3600:.1f} h measured; intervals of {question.num_seeds} runs each")
    for first, num in zip(range(0, len(trials), RUNS), gpus, strict=True):
        every = trials[first : first + RUNS]
        for slo in question.slos.limits:
            truth = pooled(tuple(every), slo.metric).percentile(slo.percentile)
            found = []
            for _ in range(GROUPS):
                chosen = tuple(every[row] for row in rng.choice(RUNS, question.num_seeds, replace=False))
                found.append(Check.of(slo, chosen, question.confidence).estimate)
            held, above = np.mean([one.low <= truth <= one.high for one in found]), np.mean([truth > one.high for one in found])
            bias, half = np.mean([one.value for one in found]) / truth - 1, np.median([one.high - one.value for one in found])
            sides = f"holds it in {held:.1%}, lies below it in {above:.1%}"
            print(f"{num:3} GPUs {slo.name:12} truth {truth:.5g} s  bias {bias:+.2%}  interval ± {half / truth:.1%} {sides}")


def _run(question: Question, demand: Demand, period: Period, task: tuple[int, int]) -> Trial:
    return run_trial(question, demand, period, *task)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "conf/capacity_planning.yaml", [int(text) for text in sys.argv[2:]] or [5, 6])
