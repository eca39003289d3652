"""Predictors of output length, each with a stated error. What they say is all that policies and routers know of lengths to come."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from simulator.request import RequestTable
from simulator.workload import BarrierSpec, ReplaySpec, Workload, WorkloadSpec, generate
from simulator.workload.base import Spec, stream

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

HISTORY_REQUESTS = 8192
HISTORY_SEED = crc32(b"history")
"""Of the traffic that came before: other requests, with the same distribution of lengths."""


class Perfect(Spec):
    """Knows every length: the bound of what prediction can bring."""

    kind: Literal["perfect"] = "perfect"

    def predict(self, requests: RequestTable, history: RequestTable, seed: int) -> Float64:
        """float64[n]: expected output tokens."""
        del history, seed
        lengths: Float64 = requests.output_tokens.astype(np.float64)
        return lengths


class Noisy(Spec):
    """The length times a lognormal error of median 1: right within a factor of e^`sigma` for two requests in three."""

    kind: Literal["noisy"] = "noisy"
    sigma: float = Field(gt=0)
    """Standard deviation of the error's logarithm."""

    def predict(self, requests: RequestTable, history: RequestTable, seed: int) -> Float64:
        """float64[n]: expected output tokens; the i-th request's error is the same at every rate."""
        del history
        scores = stream(seed, "predictor").standard_normal(len(requests))
        errors: Float64 = np.exp(self.sigma * scores)
        return errors * requests.output_tokens


class ByDataSet(Spec):
    """What earlier requests of the same client (of a mixture: of the same data set) took; one figure for all of them."""

    kind: Literal["by_data_set"] = "by_data_set"
    statistic: Literal["mean", "median"] = "mean"

    def predict(self, requests: RequestTable, history: RequestTable, seed: int) -> Float64:
        """float64[n]: expected output tokens. A client without a history is expected to be like all."""
        del seed
        figure = np.mean if self.statistic == "mean" else np.median
        predicted = np.full(len(requests), float(figure(history.output_tokens)))
        for client in np.unique(history.client):
            predicted[requests.client == client] = figure(history.output_tokens[history.client == client])
        return predicted


def _by_name(data: Any) -> Any:
    return {"kind": data} if isinstance(data, str) else data


Predictor = Annotated[Annotated[Perfect | Noisy | ByDataSet, Field(discriminator="kind")], BeforeValidator(_by_name)]
"""In a config: `perfect`, `by_data_set`, or with options, such as `{kind: noisy, sigma: 0.5}`."""


def foretell(workload: Workload, predictor: Predictor | None, spec: WorkloadSpec, seed: int, max_model_len: int) -> Workload:
    """The workload with what `predictor` says of it; batches behind a barrier are then put together as `spec` says.

    A trace is its own history: what `by_data_set` says of it is the mean (or median) of the very requests, so in-sample.
    """
    if predictor is None:
        return workload
    requests = workload.requests
    known_end = None if isinstance(spec, ReplaySpec) else HISTORY_REQUESTS
    history = generate(spec, HISTORY_SEED, max_model_len=max_model_len, num_requests=known_end).requests
    predicted = np.rint(predictor.predict(requests, history, seed)).astype(np.int64)
    requests = replace(requests, predicted_tokens=np.clip(predicted, 1, requests.max_tokens))
    if isinstance(spec, BarrierSpec) and spec.batching == "by_predicted_length":
        requests = requests.take(np.argsort(requests.predicted_tokens, kind="stable"))
    return replace(workload, requests=requests)


def expected_tokens(predicted: Int64, emitted: Int64, limits: Int64) -> Int64:
    """int64[n]: `Sequence.expected_tokens` of many requests."""
    passed = np.where(emitted >= predicted, np.frexp(emitted // predicted)[1], 0)
    expected: Int64 = np.minimum(predicted << passed, limits)
    return expected


def prediction_error(requests: RequestTable) -> dict[str, float]:
    """How far the predictions are off: the median of |predicted / true − 1|, and Spearman's rank correlation (NaN if all are equal)."""
    true, predicted = requests.output_tokens, requests.predicted_tokens
    ranks = _ranks(true), _ranks(predicted)
    spread = float(ranks[0].std() * ranks[1].std())
    together = float(((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())).mean())
    return {
        "median_relative_error": float(np.median(np.abs(predicted / true - 1))),
        "rank_correlation": together / spread if spread else float("nan"),
    }


def _ranks(values: Int64) -> Float64:
    """float64[n]: equals share the mean of their ranks."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Float64 = (np.cumsum(sizes) - (sizes - 1) / 2)[group]
    return ranks
