"""Which sizes of the service are tried, and which of them is the answer."""

from __future__ import annotations

from simulator.planning.candidate import Candidate
from simulator.planning.pool import Pool
from simulator.planning.sizing import Demand
from simulator.planning.trial import Question, Trial

FURTHER = 3
"""Sizes tried at most beyond the answer, either way, to bound the interval."""
PROBES = 2
"""Runs by which a size is probed."""
MOST_RUNS = 3
"""Times as many runs as were asked for, where a verdict is close."""
LIKELY = 0.25
"""If a size is less likely to suffice, smaller ones are not tried to bound the interval."""


class Search:
    """Gallops and bisects with a few runs, then judges the size found and its neighbours with all; with more where it is close.

    What is tried depends on what was found, never on how many processes there are.
    """

    def __init__(self, question: Question, demand: Demand, pool: Pool[tuple[int, int], Trial]) -> None:
        self.question = question
        self.candidates: dict[int, Candidate] = {}
        self._demand = demand
        self._pool = pool
        self._trials: dict[tuple[int, int], Trial] = {}
        self._most = question.max_replicas

    @property
    def simulated_s(self) -> float:
        return sum(trial.simulated_s for trial in self._trials.values())

    @property
    def simulated_requests(self) -> int:
        return sum(trial.simulated_requests for trial in self._trials.values())

    def run(self) -> int | None:
        """The smallest size that suffices, and suffices with one replica more too; None: none up to the largest."""
        num, floor = self._probe(), 1
        while num <= self._most:
            self._judge(num - 1, num, num + 1)
            self._sharpen(num - 1, num)
            if not self._suffices(num):
                floor = num = num + 1
            elif num < self._most and not self._suffices(num + 1):
                # More replicas never harm by much: that one of the two is chance.
                floor = num = num + 2
            elif num > floor and self._suffices(num - 1):
                num -= 1
            else:
                self._bound(num)
                return num
        self._judge(self._most - 1, self._most)
        return None

    # -- a few runs -----------------------------------------------------------------------------------------------------

    def _probe(self) -> int:
        """The smallest size that suffices in the first runs; the largest if none does."""
        fewest = self._demand.fewest(self._most)
        low, high = min(fewest, self._most) - 1, self._most + 1
        guess = min(max(self._demand.guess(self.question.slos, self._most), low + 1), self._most)
        seeds = self.question.first_seeds(min(PROBES, self.question.num_seeds))
        tried, reach = [num for num in (guess - 1, guess) if low < num < high], 1
        while tried:
            self._simulate([(num, seed) for num in tried for seed in seeds])
            for num in tried:
                if self._of(num, seeds).suffices:
                    high = min(high, num)
                else:
                    low = max(low, num)
            reach *= 2
            tried = self._next(low, high, min(tried), max(tried), reach)
        return min(high, self._most)

    def _next(self, low: int, high: int, least: int, greatest: int, reach: int) -> list[int]:
        """The sizes to probe between one that fails (or is taken to) and one that suffices (or is one too large to try)."""
        if high - low <= 1:
            return []
        if high > self._most:  # all failed so far
            return sorted({min(greatest + reach // 2, self._most), min(greatest + reach, self._most)})
        if low < least:  # all sufficed so far
            return [max(least - reach // 2, low + 1)]
        third = (high - low) / 3
        return sorted({low + max(round(third), 1), high - max(round(third), 1)})

    # -- all runs ----------------------------------------------------------------------------------------------------

    def _suffices(self, num: int) -> bool:
        return self.candidates[num].suffices

    def _judge(self, *sizes: int) -> None:
        self._run({num: self.question.seeds for num in sizes if 1 <= num <= self._most and num not in self.candidates})

    def _sharpen(self, *sizes: int) -> None:
        """Adds runs to the given sizes until each of them surely suffices or surely does not."""
        while wanted := [num for num in sizes if num in self.candidates and self._unclear(num)]:
            runs = {num: len(self.candidates[num].trials) + self.question.num_seeds for num in wanted}
            self._run({num: self.question.first_seeds(count) for num, count in runs.items()})

    def _unclear(self, num: int) -> bool:
        low, high = (1 - self.question.confidence) / 2, (1 + self.question.confidence) / 2
        more = len(self.candidates[num].trials) < MOST_RUNS * self.question.num_seeds and not self.question.replays
        return more and low < self._chance(num) < high

    def _run(self, seeds: dict[int, range]) -> None:
        self._simulate([(num, seed) for num in seeds for seed in seeds[num]])
        self.candidates |= {num: self._of(num, seeds[num]) for num in seeds}

    def _of(self, num: int, seeds: range) -> Candidate:
        return Candidate.of(tuple(self._trials[num, seed] for seed in seeds), self.question.slos, self.question.confidence)

    def _bound(self, num: int) -> None:
        """Tries further sizes until the interval of the answer has ends."""
        above, below = num, num - 1
        while self._chance(above) < (1 + self.question.confidence) / 2 and above < min(num + FURTHER, self._most):
            above += 1
            self._judge(above)
        while below > max(num - FURTHER, 1) and self._chance(below) > LIKELY:
            below -= 1
            self._judge(below)

    def _chance(self, num: int) -> float:
        return self.candidates[num].chance

    def _simulate(self, tasks: list[tuple[int, int]]) -> None:
        missing = [task for task in tasks if task not in self._trials]
        for task, trial in zip(missing, self._pool.map(missing), strict=True):
            self._trials[task] = trial
