"""One run of a decision test: traffic at some rate that is under way when it begins, and the latencies of those sent in a window.

The same run is simulated and served: a trace folder without latencies, which `profiler.record` replays.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.config import Config
from simulator.errors import UserError
from simulator.planning.sizing import Demand
from simulator.planning.slo import Slo
from simulator.planning.underway import begin
from simulator.simulate import Scenario
from simulator.workload import OpenSpec, Workload, generate, read_meta
from simulator.workload.base import NS_PER_S
from validation.intervals import resampled
from validation.replay import tpot, until_cut

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
METRICS = ("ttft", "tpot", "e2e")
"""What a client of the recorder sees."""
MOST_UNFINISHED = 0.05
"""Share of a window's requests that may not have ended when the run was cut."""


@dataclass(frozen=True, eq=False)
class Run:
    """Traffic of one rate and one seed."""

    rate: float
    workload: Workload
    window_s: tuple[float, float]
    """Requests that arrive in it are judged."""

    def write(self, folder: Path) -> None:
        """A trace folder without latencies, for `workload: {kind: replay}`."""
        requests = self.workload.requests
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "meta.json").write_text(json.dumps({"format_version": 1, "name": folder.name}))
        columns = {
            "request_id": requests.request_id,
            "arrival_s": requests.arrival_ns / NS_PER_S,
            "prompt_tokens": requests.prompt_tokens,
            "output_tokens": requests.output_tokens,
        }
        pd.DataFrame(columns).to_csv(folder / "requests.csv.gz", index=False, compression={"method": "gzip", "mtime": 0})


@dataclass(frozen=True)
class Cut:
    """A recorder's time was over before the last answers ended: measured and simulated are both seen as of then, for the same requests."""

    at_s: float
    request_ids: frozenset[str]
    """Those of the window that had not ended on the GPU."""

    def until(
        self, request_id: NDArray[Any], arrival_s: Float64, e2e_s: Float64, output_tokens: Int64, received_tokens: Int64
    ) -> tuple[Float64, Int64]:
        """(seconds since the arrival, output tokens), each of shape (n,): of the requests that were cut, as of the cut."""
        rows = np.isin(request_id, list(self.request_ids))
        return np.where(rows, np.fmin(e2e_s, self.at_s - arrival_s), e2e_s), np.where(rows, received_tokens, output_tokens)


@dataclass(frozen=True, eq=False)
class Latencies:
    """Of the requests in a run's window, in the order of arrival."""

    arrival_s: Float64
    by_metric: dict[str, Float64]
    """`ttft`, `tpot`, `e2e`: float64[n], seconds; NaN: an output of one token has no TPOT."""
    cut: Cut | None = None
    """Requests whose `tpot` and `e2e` are those of what had come when the run was cut."""

    @classmethod
    def within(
        cls,
        window_s: tuple[float, float],
        arrival_s: Float64,
        ttft_s: Float64,
        e2e_s: Float64,
        output_tokens: Int64,
        cut: Cut | None = None,
    ) -> Latencies:
        """Of the requests that arrive in the window.

        Raises:
            UserError: there are too few of them for a percentile.
        """
        rows = (arrival_s >= window_s[0]) & (arrival_s < window_s[1])
        if rows.sum() < 20:
            raise UserError(f"{rows.sum()} requests arrive in the window from {window_s[0]:.0f} to {window_s[1]:.0f} s: too few to judge")
        ttft_s, e2e_s = ttft_s[rows], e2e_s[rows]
        return cls(arrival_s[rows], {"ttft": ttft_s, "tpot": tpot(ttft_s, e2e_s, output_tokens[rows]), "e2e": e2e_s}, cut)

    def excess(self, slos: list[Slo]) -> float:
        """The greatest percentile / limit: 1 is the edge of what the SLO allows."""
        return max(float(np.nanpercentile(self.by_metric[slo.metric], slo.percentile)) / slo.limit_s for slo in slos)

    def excess_resampled(self, slos: list[Slo]) -> Float64:
        """float64[resamples]: the same of blocks of requests drawn anew."""
        rows = resampled(self.arrival_s, self.by_metric["e2e"])
        # An output of one token keeps any TPOT.
        each = [np.percentile(np.nan_to_num(self.by_metric[slo.metric])[rows], slo.percentile, axis=1) / slo.limit_s for slo in slos]
        highest: Float64 = np.max(each, axis=0)
        return highest

    def percentiles(self, slos: list[Slo]) -> dict[str, float]:
        """Seconds, by SLO."""
        return {slo.name: float(np.nanpercentile(self.by_metric[slo.metric], slo.percentile)) for slo in slos}


@dataclass(frozen=True, eq=False)
class Protocol:
    """What all runs of a decision test share."""

    config: Config
    measure_s: float
    warmup_s: float

    def __post_init__(self) -> None:
        if not isinstance(self.config.workload, OpenSpec):
            raise UserError("workload: a decision test changes the rate of one kind of traffic; give an open workload")
        for slo in self.slos:
            if slo.metric not in METRICS:
                raise UserError(f"slo.{slo.name}: a trace's client sees {', '.join(METRICS)}; give limits on those")

    @property
    def slos(self) -> list[Slo]:
        assert self.config.slo is not None
        return self.config.slo.limits

    def run(self, rate: float, seed: int) -> Run:
        """Traffic at that rate; requests keep their lengths at every rate, and come closer together."""
        cost = self.config.load_cost()
        engine = self.config.engine_config(cost)
        arrivals = self.config.workload.arrivals.model_copy(update={"rate": rate})  # type: ignore[union-attr]  # __post_init__: open
        spec = self.config.workload.model_copy(update={"arrivals": arrivals})
        sample = generate(spec, seed, max_model_len=engine.max_model_len, num_requests=2000)
        demand = Demand(sample.requests, rate, engine, cost)
        past_s = float(demand.usual_step_s(1) * sample.requests.output_tokens.max())
        traffic = generate(spec, seed, max_model_len=engine.max_model_len, duration_s=past_s + self.warmup_s + self.measure_s)
        start = begin(traffic, past_s, demand, 1)
        first_s = start.lead_s + self.warmup_s
        # The recorder forces lengths by `max_tokens`, so no engine wastes a row on an end that it could not foresee.
        requests = replace(start.workload.requests, max_tokens=start.workload.requests.output_tokens)
        return Run(rate, replace(start.workload, requests=requests), (first_s, first_s + self.measure_s))

    def simulated(self, run: Run, cut: Cut | None = None) -> Latencies:
        """What the simulator says of the run; it is served to its end, or seen as of the `cut` of the run on the GPU."""
        cost = self.config.load_cost()
        scenario = Scenario(run.workload, self.config.engine_config(cost), cost)
        result, then = until_cut(scenario, None if cut is None else cut.at_s)
        arrival_s, tokens = result.sent_ns / NS_PER_S, result.requests.output_tokens
        ttft_s, e2e_s = ((column - result.sent_ns) / NS_PER_S for column in (result.first_token_ns, result.finish_ns))
        if cut is not None:
            e2e_s, tokens = cut.until(result.requests.request_id, arrival_s, e2e_s, tokens, then.emitted_tokens)
        return Latencies.within(run.window_s, arrival_s, ttft_s, e2e_s, tokens, cut)


def measured(folder: Path, window_s: tuple[float, float]) -> Latencies:
    """Of a recorded run. Of the few requests that had not ended when it was cut, it is the TPOT until then.

    Raises:
        UserError: there is no such trace, too few requests are in the window, or too many of them had not ended when it was cut.
    """
    path = folder / "requests.csv.gz"
    try:
        table = pd.read_csv(path, dtype={"request_id": str}).sort_values("arrival_s")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    arrival_s, ttft_s, e2e_s = (table[name].to_numpy(np.float64) for name in ("arrival_s", "ttft_s", "e2e_s"))
    tokens = table["output_tokens"].to_numpy(np.int64)
    cut = _cut(folder, table[table["arrival_s"].between(*window_s, inclusive="left")], window_s)
    if cut is not None:
        e2e_s, tokens = cut.until(table["request_id"].to_numpy(), arrival_s, e2e_s, tokens, table["received_tokens"].to_numpy(np.int64))
    return Latencies.within(window_s, arrival_s, ttft_s, e2e_s, tokens, cut)


def _cut(folder: Path, window: pd.DataFrame, window_s: tuple[float, float]) -> Cut | None:
    """None: all requests of the window ended."""
    unfinished = window[window["e2e_s"].isna()]
    if unfinished.empty:
        return None
    cut_s, told = read_meta(folder).get("cut_s"), f"{folder}: {len(unfinished)} of the window's {len(window)} requests had not ended"
    if cut_s is None or "received_tokens" not in window:
        raise UserError(f"{told}, and cut_s of meta.json and the column received_tokens do not tell what had come: it cannot be judged")
    if cut_s < window_s[1] or len(unfinished) > MOST_UNFINISHED * len(window) or unfinished["ttft_s"].isna().any():
        few = f"the window, the first tokens of its requests and all but {MOST_UNFINISHED:.0%} of their ends must lie before the cut"
        raise UserError(f"{told} when the run was cut after {cut_s:.0f} s: it cannot be judged; {few}")
    return Cut(cut_s, frozenset(unfinished["request_id"]))
