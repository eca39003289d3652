"""From measured steps to coefficients: a non-negative linear model of a step's time, learned from windows of steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import LinearRegression
from sklearn.utils.validation import check_is_fitted

from profiler.steps import Steps
from profiler.tables import Prior
from simulator.artifacts.artifact import ErrorRow, Regime
from simulator.engine import GraphMode
from simulator.features import StepFeatures, design_matrix

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

Mode = Literal["none", "piecewise", "full"]
MODES: Mapping[Mode, GraphMode] = {"none": GraphMode.NONE, "piecewise": GraphMode.PIECEWISE, "full": GraphMode.FULL}

TERMS = (
    "one",  # weights read from memory, kernels launched by the graph
    "padded_tokens[:4]",  # a batch of 1 or 2 takes leaner kernels
    "padded_tokens",
    "padded_tokens[128:136]",  # beyond 128 rows a matrix product needs a second tile: a jump, written as a narrow ramp
    "padded_tokens[136:]",
    "decode_context_tokens",  # keys and values read
    "decode_context_tokens[:32768]",  # small totals do not fill the memory bus, so a token costs more there
    "decode_context_max_tokens",  # the longest sequence's attention is the last to end
)
"""Terms of all graph modes: their coefficients are learned from all steps together, as single modes cannot tell them apart."""

MODE_TERMS: Mapping[Mode, tuple[str, ...]] = {
    "none": ("one", "prefill_tokens"),
    "piecewise": ("one", "prefill_seqs"),
    "full": (),
}
"""Terms that a graph mode has beside `TERMS`."""

WINDOW = 6
"""Steps summed for one row of the fit. A recorded step may hold part of its neighbour's time (two clocks): sums do not."""

ROUNDING = 1e-12
"""How far the cosine between two columns that say the same may be from 1."""


class StepTimeRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """Step times, nanoseconds, as a sum of non-negative physical terms; minimizes the relative error over windows of steps.

    X is an array (k, number of features) whose columns are those of `StepFeatures`; y is float64[k], nanoseconds.

    Args:
        terms: terms whose coefficients all graph modes share.
        mode_terms: further terms of single graph modes.
        window: successive steps whose times are summed before the fit compares them; 1 fits single steps.
        priors: weighted sums of shared terms' coefficients that should be 0, each weighing like a row of the fit: what is known of
            coefficients that no step tells apart.
        latent: names in priors that are no terms: coefficients that others are expected to follow from.
        passes: weighted fits, each weighted with the times that the one before it predicts. Weights taken from the measured
            times would favour the windows that happened to be short, and predict too little in sum.

    Attributes:
        coef_: float64[number of columns], nanoseconds by unit of the term; the mode terms follow the shared terms, the latent ones those.
        columns_: (graph mode or None, term) of each coefficient.
    """

    def __init__(
        self,
        terms: tuple[str, ...] = TERMS,
        mode_terms: Mapping[Mode, tuple[str, ...]] = MODE_TERMS,
        window: int = WINDOW,
        priors: tuple[Prior, ...] = (),
        latent: tuple[str, ...] = (),
        passes: int = 4,
    ) -> None:
        self.terms = terms
        self.mode_terms = mode_terms
        self.window = window
        self.priors = priors
        self.latent = latent
        self.passes = passes

    def fit(self, X: ArrayLike, y: ArrayLike, run: ArrayLike | None = None) -> StepTimeRegressor:  # noqa: N803  # scikit-learn's name
        """Learns the coefficients; `run` (int64[k], default: all one) numbers the stretches that no window may span.

        Raises:
            ValueError: no stretch is as long as a window.
        """
        steps = np.asarray(X)
        runs = np.zeros(len(steps), np.int64) if run is None else np.asarray(run)
        self.columns_ = [(None, term) for term in self.terms] + [(mode, term) for mode, terms in self.mode_terms.items() for term in terms]
        self.columns_ += [(None, name) for name in self.latent]
        self.n_features_in_ = steps.shape[1]
        sums = window_sums(np.column_stack([self._design(steps), np.asarray(y, np.float64)]), runs, self.window)
        if not len(sums):
            raise ValueError(f"no {self.window} steps follow one another: too few steps to fit")
        work, total = sums[:, :-1], sums[:, -1]
        expected, known = total, self._prior_rows()
        for _ in range(self.passes):
            rows = np.vstack([work / expected[:, None], known])
            self.coef_ = non_negative(rows, np.concatenate([total / expected, np.zeros(len(known))]))
            # Few noisy rows can bring a prediction to nothing: no row may weigh more than ten of its like.
            expected = np.maximum(work @ self.coef_, total / 10)
        return self

    def predict(self, X: ArrayLike) -> Float64:  # noqa: N803
        """float64[k]: nanoseconds of each step."""
        check_is_fitted(self)
        return np.asarray(self._design(np.asarray(X)) @ self.coef_, np.float64)

    def regimes(self) -> dict[Mode, Regime]:
        """The coefficients as the artifact stores them: by graph mode, to 6 digits, without terms that came out as zero."""
        check_is_fitted(self)
        regimes: dict[Mode, Regime] = {}
        for name in MODES:
            gpu_ns: dict[str, float] = {}
            for (owner, term), value in zip(self.columns_, self.coef_, strict=True):
                if owner in (None, name) and value > 0.0 and term not in self.latent:
                    gpu_ns[term] = gpu_ns.get(term, 0.0) + float(value)
            regimes[name] = Regime(gpu_ns={term: float(f"{value:.6g}") for term, value in gpu_ns.items()})
        return regimes

    def _prior_rows(self) -> Float64:
        """float64[number of priors, number of columns]."""
        rows, column = (
            np.zeros((len(self.priors), len(self.columns_))),
            {term: i for i, (mode, term) in enumerate(self.columns_) if mode is None},
        )
        for row, prior in zip(rows, self.priors, strict=True):
            for term, weight in prior:
                row[column[term]] += weight
        return rows

    def _design(self, steps: NDArray[np.generic]) -> Float64:
        """float64[k, number of columns]: a mode term is zero in the steps of other modes, a latent one in all."""
        features = StepFeatures(*np.asarray(steps, np.int64).T)
        blocks = [design_matrix(self.terms, features)]
        for mode, terms in self.mode_terms.items():
            if terms:
                blocks.append(design_matrix(terms, features) * (features.graph_mode == MODES[mode])[:, None])
        return np.hstack([*blocks, np.zeros((len(steps), len(self.latent)))])


def window_sums(columns: Float64, run: Int64, window: int, every: int = 1) -> Float64:
    """Sums over `window` successive rows of one run, from every `every`-th row of a run on: float64[m, number of columns]."""
    total = np.concatenate([np.zeros((1, columns.shape[1])), np.cumsum(columns, axis=0)])
    start = np.arange(max(len(run) - window + 1, 0))
    position = start - np.searchsorted(run, run[start])
    start = start[(run[start] == run[start + window - 1]) & (position % every == 0)]
    return np.asarray(total[start + window] - total[start])


def held_out(steps: Steps, first_s: float, judged_on: str) -> list[ErrorRow]:
    """Fits to the steps that ended within the first `first_s` seconds and judges the rest."""
    early = steps.end_s <= first_s
    fitted = fit(steps.take(early))
    rest = steps.take(~early)
    return errors(rest, fitted.predict(rest.matrix), judged_on)


def cross_validated(steps: Steps, block_s: float, folds: int, judged_on: str) -> list[ErrorRow]:
    """Leaves out every `folds`-th block of `block_s` seconds in turn and predicts it from the others.

    Neighbouring steps are near-copies of one another: left out at random, they would be predicted from their neighbours.
    """
    fold = (steps.end_s // block_s).astype(np.int64) % folds
    predicted = np.zeros(len(steps))
    for left_out in np.unique(fold):
        fitted = fit(steps.take(fold != left_out))
        predicted[fold == left_out] = fitted.predict(steps.matrix[fold == left_out])
    return errors(steps, predicted, judged_on)


def fit(steps: Steps) -> StepTimeRegressor:
    """The project's cost model, fitted to measured steps."""
    return StepTimeRegressor().fit(steps.matrix, steps.duration_ns, run=steps.run)


def errors(steps: Steps, predicted_ns: Float64, judged_on: str) -> list[ErrorRow]:
    """Errors over windows that do not overlap, and over single uniform decode steps with none but their like around them."""
    both = np.column_stack([predicted_ns, steps.duration_ns])
    windows = window_sums(both, steps.run, WINDOW, every=WINDOW)
    mixed = np.asarray(steps.features.prefill_seqs) > 0
    # A prefill's launch shows up in the step before it, and the wait for it in the steps after it.
    near_prefill = np.convolve(mixed, np.ones(7), mode="full")[3:-3] > 0
    rows = {f"windows of {WINDOW} steps": windows, "single decode steps away from prefills": both[~near_prefill]}
    return [_error_row(f"{judged_on}: {name}", pair[:, 0], pair[:, 1]) for name, pair in rows.items() if len(pair)]


def _error_row(judged_on: str, predicted: Float64, measured: Float64) -> ErrorRow:
    off = np.abs(predicted / measured - 1.0)
    median, p90, signed = np.median(off), np.quantile(off, 0.9), predicted.sum() / measured.sum() - 1.0
    return ErrorRow(judged_on=judged_on, n=len(off), median_abs=_digits(median), p90_abs=_digits(p90), signed_mean=_digits(signed))


def _digits(share: float) -> float:
    return round(float(share), 5)


def non_negative(work: Float64, target: Float64) -> Float64:
    """Non-negative least squares; columns are brought to one scale first, as tokens and constants differ by 10⁵.

    Of columns that are multiples of one another the first stands for all, and the others get 0: which of them took its share would
    otherwise be a matter of rounding, and so of the CPU. (Where every sequence verifies three drafts, sequences and drafts are such.)
    """
    scale = np.sqrt((work**2).mean(axis=0))
    scale[scale == 0.0] = 1.0
    columns = work / scale
    cosines = np.triu(columns.T @ columns / len(columns), 1)
    columns[:, (cosines > 1.0 - ROUNDING).any(axis=0)] = 0.0
    model = LinearRegression(positive=True, fit_intercept=False).fit(columns, target)
    return np.asarray(model.coef_ / scale, np.float64)


def feature_domain(features: StepFeatures, names: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Least and greatest value of each feature."""
    return {name: (float(np.min(getattr(features, name))), float(np.max(getattr(features, name)))) for name in names}
