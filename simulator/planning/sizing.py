"""What can be said before simulating: whether any number of GPUs can do, how long requests stay, where to begin the search.

A mean-field estimate: every replica holds the batch that its share of the traffic keeps busy, all steps alike. It guides the
search and never decides it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.features import StepFeatures
from simulator.metrics import Latency
from simulator.planning.slo import Slo, Slos
from simulator.reporting.wording import duration, slo_label
from simulator.request import RequestTable
from simulator.step.clock import EngineClock

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

NS_PER_S = 1_000_000_000
ROUNDS = 200
"""Of the fixed-point iteration; near the limit of what can be carried it converges slowly."""
CONTEXTS = 4096
FILLED = 0.97
"""A service that began empty is in steady state when it holds so much of its load."""
INSTANTS = 50
"""Of the filling, in a mean lifetime."""
MOST_LIFETIMES = 20
"""After so many of them the filling is given up: near the limit of what can be carried it takes forever."""


@dataclass(frozen=True, eq=False)
class Demand:
    """Open traffic as the estimate sees it: a sample of its requests, and how many come a second."""

    requests: RequestTable
    rate: float
    engine: EngineConfig
    cost: CostModel
    tokens_per_step: float = 1.0
    """That a decoding sequence emits on average: more than one with speculation. What is said of a step is said of a token then."""
    beside: float = 0.0
    """Replicas' worth of others that share the load, beside those that are counted."""

    @cached_property
    def output_tokens_per_s(self) -> float:
        """Tokens that the service has to emit each second."""
        return self.rate * float(self.requests.output_tokens.mean())

    @cached_property
    def mean_context_tokens(self) -> float:
        """Context of a decoding sequence, over time: long outputs count for as long as they stay."""
        prompt, output = self.requests.prompt_tokens.astype(float), self.requests.output_tokens.astype(float)
        return float((output * (prompt + output / 2)).sum() / output.sum())

    @cached_property
    def _contexts(self) -> Float64:
        """float64[n]: contexts of decoding sequences as they are met over time, in order."""
        requests = self.requests
        emitted = np.cumsum(requests.output_tokens.astype(np.float64))
        met = (np.arange(CONTEXTS) + 0.5) / CONTEXTS * emitted[-1]
        row = np.searchsorted(emitted, met)
        return np.sort(requests.prompt_tokens[row] + requests.output_tokens[row] - (emitted[row] - met))

    @cached_property
    def most_running(self) -> float:
        """Sequences that one replica can hold: its seats, or its KV blocks at the mean context."""
        blocks = self.mean_context_tokens / self.engine.block_size + 0.5
        return min(float(self.engine.max_num_seqs), self.engine.usable_blocks / blocks)

    def step_s(self, running: float) -> float:
        """Seconds of a decode step of `running` sequences of mean context."""
        running = max(running, 1.0)
        # The longest of so many contexts lies where one of them is expected beyond it.
        longest = float(self._contexts[min(int((1 - 1 / (running + 1)) * CONTEXTS), CONTEXTS - 1)])
        return self._decode_ns(running, self.mean_context_tokens, longest) / NS_PER_S

    def _decode_ns(self, running: float, context: float, longest: float) -> float:
        seqs = int(np.ceil(running))
        padded, mode = self.engine.graphs.pad(seqs * self.engine.decode_query_len, True)
        features = StepFeatures(
            decode_seqs=seqs,
            decode_context_tokens=running * context,
            decode_context_max_tokens=longest,
            verify_tokens=seqs * (self.engine.decode_query_len - 1),
            padded_tokens=padded,
            graph_mode=mode,
        )
        overheads = self.cost.artifact.overheads
        launch, gpu_ns = self.cost.launch(features), int(self.cost.gpu_ns(features))
        if self.engine.depth == 2:  # the shorter of GPU and CPU hides behind the longer
            step_ns = max(gpu_ns, overheads.schedule_ns + launch.turn_ns)
        else:
            lead_ns, cpu_ns = EngineClock(overheads.schedule_ns).after_result(launch)
            step_ns = max(gpu_ns + lead_ns, cpu_ns)
        return step_ns / self.tokens_per_step

    @cached_property
    def prefill_s(self) -> Float64:
        """float64[n]: time to compute each prompt alone on an idle engine."""
        by_length = {length: self._prefill_ns(length) / NS_PER_S for length in np.unique(self.requests.prompt_tokens).tolist()}
        return np.array([by_length[length] for length in self.requests.prompt_tokens.tolist()])

    def _prefill_ns(self, prompt_tokens: int) -> float:
        total, done = 0.0, 0
        while done < prompt_tokens:
            chunk = min(prompt_tokens - done, self.engine.max_num_batched_tokens)
            done += chunk
            padded, mode = self.engine.graphs.pad(chunk, False)
            features = StepFeatures(1, chunk, done, chunk * done - chunk * (chunk - 1) // 2, 0, 0, 0, 0, padded, mode)
            total += self.cost.gpu_ns(features)
        return total

    @cached_property
    def alone_step_s(self) -> Float64:
        """float64[n]: mean decode step of each request if it had an engine to itself."""
        contexts = self.requests.prompt_tokens + self.requests.output_tokens // 2
        grid = np.unique(np.linspace(contexts.min(), contexts.max(), 64).astype(int))
        steps_s = [self._decode_ns(1.0, float(context), float(context)) / NS_PER_S for context in grid]
        return np.asarray(np.interp(contexts, grid, steps_s), np.float64)

    # -- latencies ----------------------------------------------------------------------------------------------------

    def latencies(self, step_s: float | Float64) -> dict[str, Latency]:
        """Latencies if nothing waited and every decode step took `step_s`."""
        columns = self._columns(step_s)
        return {name: Latency(values[defined], defined[defined]) for name, (values, defined) in columns.items()}

    def _columns(self, step_s: float | Float64) -> dict[str, tuple[Float64, Bool]]:
        """(seconds, whether the request has such a latency), shape (n,), by metric."""
        requests, overheads = self.requests, self.cost.artifact.overheads
        ttft_s = self.prefill_s + (overheads.ingress_ns + overheads.egress_ns) / NS_PER_S
        tpot_s = np.broadcast_to(step_s, len(requests))
        always, more = np.ones(len(requests), np.bool_), requests.output_tokens > 1
        return {
            "ttft": (ttft_s, always),
            "ttfvt": (ttft_s + (requests.visible_token - 1) * tpot_s, requests.visible_token <= requests.output_tokens),
            "tpot": (tpot_s, more),
            "itl": (tpot_s * self.tokens_per_step, more),
            "e2e": (ttft_s + (requests.output_tokens - 1) * tpot_s, always),
        }

    def broken_alone(self, slos: Slos) -> list[str]:
        """Limits that no number of GPUs can keep, in words: each request alone on an idle engine breaks them."""
        found = self.latencies(self.alone_step_s)
        broken = [
            f"{slo_label(slo.name)} is {duration(value)} (limit {duration(slo.limit_s)})"
            for slo in slos.limits
            if (value := _value(found, slo)) > slo.limit_s
        ]
        good = self._good_share(slos)
        if slos.min_goodput_share is not None and good < slos.min_goodput_share:
            broken.append(f"only {good:.1%} of requests keep all limits (min_goodput_share {slos.min_goodput_share:.1%})")
        return broken

    def _good_share(self, slos: Slos) -> float:
        """Share of requests that keep all limits alone on an idle engine."""
        good, columns = np.ones(len(self.requests), np.bool_), self._columns(self.alone_step_s)
        for metric, limit_s in slos.per_request.items():
            values, defined = columns[metric]
            good &= (values <= limit_s) | ~defined
        return float(good.mean())

    def _expected(self, slo: Slo, num_replicas: int, step_s: float) -> float:
        """The figure that `slo` limits. Percentiles meet a service that is fuller than usual: by a Poisson number's swing."""
        level = self.output_tokens_per_s * step_s
        fuller = max(float(ndtri(min(slo.percentile, 99.9) / 100)), 0.0) * np.sqrt(level)
        replicas = num_replicas + self.beside
        step_s *= self.step_s((level + fuller) / replicas) / self.step_s(level / replicas)
        return _value(self.latencies(step_s), slo)

    # -- sizes --------------------------------------------------------------------------------------------------------

    def step_of(self, num_replicas: int) -> float | None:
        """Seconds of a decode step in steady state by Little's law; None: the replicas cannot carry the load."""
        rate = self.rate / (num_replicas + self.beside)
        tokens = rate * float(self.requests.output_tokens.mean())
        # Prefills take their time from decoding.
        decoding = 1.0 - rate * max(float(self.prefill_s.mean()) - self.step_s(1.0), 0.0)
        running = 0.0
        for _ in range(ROUNDS):
            step_s = self.step_s(running) / decoding if decoding > 0 else np.inf
            wanted = tokens * step_s
            if wanted > self.most_running:
                return None
            if wanted - running < 1e-3 * max(running, 1.0):
                return step_s
            running = wanted
        return None

    def usual_step_s(self, num_replicas: int) -> float:
        """Seconds of a decode step in steady state; with full batches where the replicas cannot carry the load."""
        return self.step_of(num_replicas) or self.step_s(self.most_running)

    @property
    def longest_s(self) -> float:
        """How long the longest output takes with full batches."""
        return float(self.requests.output_tokens.max()) * self.step_s(self.most_running)

    @cached_property
    def most_tokens_per_s(self) -> float:
        """Output tokens that one replica emits a second with full batches."""
        return self.most_running / self.step_s(self.most_running)

    def computing_s(self, contexts: Int64) -> float:
        """Time of one engine to compute the given contexts, int64[m], in steps that are full of prefill."""
        if not len(contexts):
            return 0.0
        budget, tokens = self.engine.max_num_batched_tokens, float(contexts.sum())
        padded, mode = self.engine.graphs.pad(budget, False)
        attended = float((contexts.astype(np.float64) ** 2).sum()) / 2 / tokens * budget
        seqs = max(round(budget / tokens * len(contexts)), 1)
        step_ns = self.cost.gpu_ns(StepFeatures(seqs, budget, budget, int(attended), 0, 0, 0, 0, padded, mode))
        return tokens / budget * float(step_ns) / NS_PER_S

    def filling_s(self, num_replicas: int) -> float | None:
        """How long a service that began empty takes to hold `FILLED` of its steady load; None: it cannot carry the load.

        A fluid that flows in at the rate of the traffic and through steps that slow down as it rises.
        """
        step_s = self.step_of(num_replicas)
        if step_s is None:
            return None
        outputs, n = np.sort(self.requests.output_tokens), len(self.requests)
        instant_s = float(outputs.mean()) * step_s / INSTANTS
        rate = self.rate / (num_replicas + self.beside)
        inflow, level = rate * instant_s, rate * float(outputs.mean()) * step_s
        slower = step_s / self.step_s(level)
        steps_at, running = [0.0], 0.0
        while running < FILLED * level and len(steps_at) < MOST_LIFETIMES * INSTANTS:
            steps_at.append(steps_at[-1] + instant_s / (self.step_s(running) * slower))
            edges = np.array(steps_at)
            steps_done = edges[-1] - (edges[:-1] + edges[1:]) / 2
            running = inflow * float((n - np.searchsorted(outputs, steps_done, side="right")).sum()) / n
        return instant_s * (len(steps_at) - 1)

    def fewest(self, most: int) -> int:
        """The smallest number of replicas that can carry the load at all; above `most`: one that surely cannot do with `most`."""
        return _first(lambda num: self.step_of(num) is not None, most)

    def guess(self, slos: Slos, most: int) -> int:
        """The smallest number of replicas that keeps the limits by this estimate; at most `most`."""

        def keeps(num_replicas: int) -> bool:
            step_s = self.step_of(num_replicas)
            return step_s is not None and all(self._expected(slo, num_replicas, step_s) <= slo.limit_s for slo in slos.limits)

        return min(_first(keeps, most), most)


def _value(found: dict[str, Latency], slo: Slo) -> float:
    latency = found[slo.metric]
    return latency.percentile(slo.percentile) if len(latency) else 0.0


def _first(holds: Callable[[int], bool], most: int) -> int:
    """The smallest number for which `holds`, which is false, then true; a power of two above `most` if none up to there."""
    high = 1
    while not holds(high):
        if high > most:
            return high
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
