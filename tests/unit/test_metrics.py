"""Metrics against a list with one row a token, and censoring against scipy."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from simulator.cluster import NS_PER_S
from simulator.cost import CostModel
from simulator.engine import EngineConfig
from simulator.metrics import (
    Latency,
    attainment,
    inter_token_latency,
    judge,
    kaplan_meier,
    latencies,
    request_frame,
    within_limits,
)
from simulator.planning.slo import Slos
from simulator.reporting.summary import PERCENTILES as SHOWN
from simulator.reporting.summary import stragglers, summary
from simulator.request import RequestTable
from simulator.simulate import Result, Scenario, simulate
from simulator.step import itl as itl_module
from simulator.workload import Barrier, OpenLoop, Workload

PERCENTILES = (1.0, 50.0, 90.0, 99.0, 99.9)


def scenario(*, horizon_s: float | None = None, replicas: int = 2, seed: int = 1, num_gpu_blocks: int = 60, n: int = 150) -> Scenario:
    """Traffic that a small pool can only serve with preemptions."""
    rng = np.random.default_rng(seed)
    output_tokens = rng.integers(1, 250, n)
    requests = RequestTable.build(
        arrival_ns=np.cumsum(rng.exponential(0.02 * NS_PER_S, n)).astype(np.int64),
        prompt_tokens=rng.integers(1, 120, n),
        output_tokens=output_tokens,
        max_tokens=np.where(rng.random(n) < 0.2, output_tokens, 512),
        visible_token=rng.integers(1, 260, n),
    )
    engine = EngineConfig(num_gpu_blocks=num_gpu_blocks, max_model_len=600, max_num_seqs=32, max_num_batched_tokens=64)
    cost = CostModel.constant(10_000_000, per_seq_ns=123_457.0)
    return Scenario(Workload(requests, OpenLoop()), engine, cost, num_replicas=replicas, horizon_s=horizon_s)


def token_times(asked: Scenario) -> dict[int, NDArray[np.int64]]:
    """When each request's tokens were emitted: every token of every step of the reference engine, one by one."""
    result = simulate(replace(asked, stride=1))
    times: dict[int, dict[int, int]] = defaultdict(dict)
    for log in result.logs:
        rows = log.rows
        assert (rows[:, 1] == 1).all()
        end_of = dict(zip(rows[:, 0].tolist(), rows[:, 9].tolist(), strict=True))
        for row, token, first, last in log.segments.tolist():
            for step in range(first, last + 1):
                assert token + step - first not in times[row], "a token was emitted twice"
                times[row][token + step - first] = end_of[step]
    return {row: np.array([when for _, when in sorted(tokens.items())]) for row, tokens in times.items()}


@pytest.fixture(scope="module", params=[None, 4.0], ids=["to the end", "cut"])
def run(request: pytest.FixtureRequest) -> tuple[Result, dict[int, NDArray[np.int64]]]:
    asked = scenario(horizon_s=request.param)
    result = simulate(asked)
    assert result.preemptions.sum() > 20
    assert (result.finish_ns >= 0).all() == (request.param is None)
    return result, token_times(asked)


Run = tuple[Result, dict[int, NDArray[np.int64]]]


def check_itl(result: Result, gap_ns: NDArray[np.int64], rows: NDArray[np.bool_] | None = None) -> None:
    itl = inter_token_latency(result, PERCENTILES, rows)
    gap_s = gap_ns / NS_PER_S
    assert itl.count == len(gap_s)
    assert itl.max_s == gap_s.max()
    assert [itl.mean_s, itl.std_s] == pytest.approx([gap_s.mean(), gap_s.std()], rel=1e-9)
    assert list(itl.percentiles_s.values()) == pytest.approx(np.percentile(gap_s, PERCENTILES), rel=1e-12)


def test_inter_token_latency_is_exact(run: Run) -> None:
    result, times = run
    check_itl(result, np.concatenate([np.diff(t) for t in times.values()]))


def test_inter_token_latency_is_exact_piece_by_piece(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps regenerated for each pass, in pieces much shorter than an output."""
    result, times = run
    monkeypatch.setattr(itl_module, "STEPS_KEPT", 0)
    for log in result.logs:
        monkeypatch.setattr(log, "iter_ends", lambda *_, whole=log.iter_ends: whole(7))
    check_itl(result, np.concatenate([np.diff(t) for t in times.values()]))
    test_itl_of_each_request_is_exact(run)


def test_inter_token_latency_of_some_requests(run: Run) -> None:
    result, times = run
    rows = np.arange(len(result.requests)) % 3 == 0
    check_itl(result, np.concatenate([np.diff(t) for row, t in times.items() if rows[row]]), rows)


def test_inter_token_latency_of_nothing() -> None:
    itl = inter_token_latency(simulate(scenario(n=5)), (50.0,), np.zeros(5, np.bool_))
    assert itl.count == 0
    assert np.isnan([itl.mean_s, itl.max_s, itl.percentiles_s[50.0]]).all()


def test_itl_of_each_request_is_exact(run: Run) -> None:
    result, times = run
    frame = request_frame(result)
    for row, columns in enumerate(frame[["itl_p50_s", "itl_p99_s", "itl_max_s"]].to_numpy()):
        gap_s = np.diff(times.get(row, np.zeros(0))) / NS_PER_S
        if len(gap_s):
            assert columns == pytest.approx(np.percentile(gap_s, [50, 99, 100]), rel=1e-12)
        else:
            assert np.isnan(columns).all()


def test_latencies_of_each_request(run: Run) -> None:
    result, times = run
    frame, end_s = request_frame(result), result.end_ns / NS_PER_S
    assert list(frame["request_id"]) == [str(row) for row in range(len(frame))]
    for row, seen in frame.iterrows():
        tokens_s = times.get(row, np.zeros(0)) / NS_PER_S
        n, sent_s = int(seen["output_tokens"]), seen["sent_s"]
        assert seen["emitted_tokens"] == len(tokens_s)
        assert seen["finished"] == (len(tokens_s) == n)
        expected = {
            "ttft_s": tokens_s[0] - sent_s if len(tokens_s) else np.nan,
            "ttfvt_s": np.nan,
            "e2e_s": tokens_s[-1] - sent_s if len(tokens_s) == n else np.nan,
            "tpot_s": (tokens_s[-1] - tokens_s[0]) / (n - 1) if len(tokens_s) == n > 1 else np.nan,
        }
        visible = result.requests.visible_token[row]
        if visible <= len(tokens_s):
            expected["ttfvt_s"] = tokens_s[visible - 1] - sent_s
        assert [seen[name] for name in expected] == pytest.approx(list(expected.values()), nan_ok=True)
        assert not seen["queue_s"] > seen["ttft_s"]
        assert np.isnan(sent_s) or sent_s <= end_s


def test_throughput_counts_what_happens_in_the_window(run: Run) -> None:
    result, times = run
    low_s, high_s = 1.0, 3.5
    figures = summary(result, window=(low_s, high_s))
    emitted = np.concatenate(list(times.values())) / NS_PER_S
    finish_s = result.finish_ns[result.finish_ns >= 0] / NS_PER_S
    assert figures["duration"] == high_s - low_s
    assert figures["total_output_tokens"] == ((low_s <= emitted) & (emitted < high_s)).sum()
    assert figures["request_throughput"] == pytest.approx(((low_s <= finish_s) & (finish_s < high_s)).sum() / (high_s - low_s))
    sent_s = result.sent_ns / NS_PER_S
    assert figures["num_requests"] == ((low_s <= sent_s) & (sent_s < high_s)).sum() == figures["completed"] + figures["censored"]


def test_summary_has_the_names_of_vllm_bench_serve() -> None:
    """vLLM 0.26 `benchmarks/serve.py`, `benchmark()`."""
    result = simulate(scenario())
    figures = summary(result, Slos(tpot_ms={"p99": 50}))
    latency = {f"{statistic}_{name}_ms" for statistic in ("mean", "median", "std", "p99") for name in ("ttft", "tpot", "itl", "e2el")}
    counts = {"duration", "completed", "total_input_tokens", "total_output_tokens"}
    rates = {"request_throughput", "request_goodput", "output_throughput", "total_token_throughput"}
    assert latency | counts | rates <= figures.keys()
    requests = result.requests
    duration_s = result.finish_ns.max() / NS_PER_S
    assert figures["duration"] == duration_s
    assert figures["completed"] == len(requests)
    assert figures["total_input_tokens"] == requests.prompt_tokens.sum()
    assert figures["total_output_tokens"] == requests.output_tokens.sum()
    assert figures["total_token_throughput"] * duration_s == pytest.approx(requests.prompt_tokens.sum() + requests.output_tokens.sum())
    e2e_ms = (result.finish_ns - result.sent_ns) / 1e6
    figures_of_e2e = [figures[f"{name}_e2el_ms"] for name in ("mean", "std", "median", "p90", "p99")]
    assert figures_of_e2e == pytest.approx([e2e_ms.mean(), e2e_ms.std(), *np.percentile(e2e_ms, [50, 90, 99])])
    several = requests.output_tokens > 1
    tpot_ms = (e2e_ms - (result.first_token_ns - result.sent_ns) / 1e6)[several] / (requests.output_tokens[several] - 1)
    assert figures["p99_tpot_ms"] == pytest.approx(np.percentile(tpot_ms, 99))
    share = ((tpot_ms <= 50).sum() + (~several).sum()) / len(requests)
    assert figures["request_goodput"] == pytest.approx(share * len(requests) / duration_s)
    assert figures["goodput_share"] == pytest.approx(share)


def test_outputs_that_end_while_thinking_have_no_ttfvt_and_are_counted() -> None:
    result = simulate(scenario())
    never = result.requests.visible_token > result.requests.output_tokens
    assert never.any()
    assert summary(result, itl=False)["never_visible"] == never.sum()
    assert len(latencies(result)["ttfvt"]) == (~never).sum()
    assert latencies(result)["ttfvt"].censored == 0


# -- censoring --------------------------------------------------------------------------------------------------------


def test_kaplan_meier_agrees_with_scipy() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        values = rng.integers(1, 20, 40).astype(float)  # many ties
        observed = rng.random(40) < 0.7
        expected = stats.ecdf(stats.CensoredData(uncensored=values[observed], right=values[~observed])).sf
        times, surviving = kaplan_meier(values, observed)
        shared = np.isin(expected.quantiles, times)
        assert times == pytest.approx(expected.quantiles[shared])
        assert surviving == pytest.approx(expected.probabilities[shared])


def test_kaplan_meier_by_hand() -> None:
    """1, 2+, 3, 4+ (+: censored): a quarter is gone at 1; of the two still at risk at 3, half go."""
    latency = Latency(np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, False, True, False]))
    assert latency.attainment(0.5) == 0
    assert latency.attainment(1.0) == 0.25
    assert latency.attainment(3.0) == pytest.approx(1 - 0.75 * 0.5)
    assert latency.percentile(20) == 1
    assert latency.percentile(60) == 3
    assert latency.percentile(99) == np.inf
    assert latency.mean() == pytest.approx(0.25 * 1 + 0.375 * 3 + 0.375 * 4)


def test_without_censoring_percentiles_are_those_of_numpy() -> None:
    values = np.random.default_rng(0).lognormal(size=997)
    latency = Latency(values, np.ones(997, np.bool_))
    assert latency.percentiles(SHOWN) == {p: pytest.approx(np.percentile(values, p)) for p in (50.0, 90.0, 95.0, 99.0)}
    assert attainment(values, 1.0) == (values <= 1.0).mean()


def test_censored_requests_make_the_end_of_a_run_no_better() -> None:
    """Dropping the unfinished keeps the short outputs; the estimate comes close to what the uncut run shows."""
    asked = scenario(n=600, replicas=4, num_gpu_blocks=2000)
    whole, cut = simulate(asked), simulate(replace(asked, horizon_s=7.0))
    window = (4.0, 7.0)
    truth, seen = latencies(whole, window)["e2e"], latencies(cut, window)["e2e"]
    assert seen.censored > 20
    dropped = np.median(seen.values_s[seen.observed])
    assert dropped < 0.9 * truth.percentile(50)
    assert seen.percentile(50) == pytest.approx(truth.percentile(50), rel=0.2)
    assert summary(cut, itl=False)["censored"] == ((cut.sent_ns >= 0) & (cut.finish_ns < 0)).sum()


def test_a_request_over_its_limit_is_bad_before_it_ends() -> None:
    cut = simulate(scenario(horizon_s=4.0))
    ratio = within_limits(cut, Slos(e2e_s={"p99": 1e-3}))
    assert ratio.observed.all()
    assert ratio.attainment(1.0) == 0


# -- SLOs, stragglers -------------------------------------------------------------------------------------------------


def test_judging_slos() -> None:
    result = simulate(scenario())
    e2e_s = (result.finish_ns - result.sent_ns) / NS_PER_S
    limit_s = float(np.percentile(e2e_s, 95))
    outcomes = {o.name: o for o in judge(result, Slos(e2e_s={"p50": limit_s, "p99": limit_s}, itl_ms={"p99": 1e6}, min_goodput_share=0.9))}
    assert {name: outcome.met for name, outcome in outcomes.items()} == {
        "itl_ms.p99": True,
        "e2e_s.p50": True,
        "e2e_s.p99": False,
        "min_goodput_share": True,
    }
    assert outcomes["e2e_s.p99"].share == (e2e_s <= limit_s).mean()
    assert outcomes["e2e_s.p50"].headroom > 0 > outcomes["e2e_s.p99"].headroom
    assert outcomes["min_goodput_share"].value == (e2e_s <= limit_s).mean()


def test_stragglers_of_a_barrier() -> None:
    """A batch of eight that waits for one request of ten times the length."""
    lengths = np.array([100] * 7 + [1000])
    requests = RequestTable.build(np.zeros(16, np.int64), np.full(16, 10), np.tile(lengths, 2))
    engine = EngineConfig(num_gpu_blocks=2000, max_model_len=2000)
    result = simulate(Scenario(Workload(requests, Barrier(8)), engine, CostModel.constant(1_000_000)))
    figures = stragglers(result)
    assert figures["straggler_batch_size"] == 8
    assert figures["straggler_slot_use"] == pytest.approx(1700 / 8 / 1000)
    assert figures["straggler_tail"] == pytest.approx(0.9, abs=0.005)


def test_slots_that_the_last_batch_leaves_empty_are_unused() -> None:
    """Six of a batch of eight: a quarter of the slots is empty all the time."""
    requests = RequestTable.build(np.zeros(6, np.int64), np.full(6, 10), np.full(6, 100))
    engine = EngineConfig(num_gpu_blocks=2000, max_model_len=2000)
    figures = stragglers(simulate(Scenario(Workload(requests, Barrier(8)), engine, CostModel.constant(1_000_000))))
    assert figures["straggler_slot_use"] == pytest.approx(0.75)
