"""What an optimization costs in accuracy, beside what it gains in speed: published figures, `models/accuracy.csv`.

From arXiv 2510.18672 (ICLR 2026), CC BY 4.0; `python -m validation.study` writes the file from the study's tables. Its caveats: answers
are parsed strictly, so that a right answer in the wrong form counts as wrong (more often where `max_tokens` cuts them off); 90 answers
of AIME 2024 have a standard error of 5 points; the errors given are those of chance in sampling, not of the choice of questions.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from math import ceil, hypot
from statistics import NormalDist
from typing import TYPE_CHECKING

from simulator.artifacts.models import MODELS
from simulator.planning.interval import Interval

if TYPE_CHECKING:
    from simulator.config import Config

PATH = MODELS / "accuracy.csv"
COLLAPSE_POINTS = 10.0
"""An optimization that loses more is refused unless `plan.max_accuracy_drop` allows it."""
Z = 1.96
"""Standard errors of a 95% interval."""
LABELS = {"gsm8k": "GSM8K", "math500": "MATH-500", "aime24": "AIME 2024", "gpqa_diamond": "GPQA Diamond"}
"""Of the data sets, in the order in which they're told."""


@dataclass(frozen=True)
class Score:
    """Accuracy on one data set, percent."""

    accuracy: float
    error: float
    """Standard error, points."""
    source: str

    def minus(self, other: Score) -> Score:
        """How much better it is."""
        return Score(self.accuracy - other.accuracy, hypot(self.error, other.error), self.source)

    def interval(self, confidence: float) -> Interval:
        """Of the true share, were the answers independent (the normal approximation)."""
        half = NormalDist().inv_cdf((1 + confidence) / 2) * self.error
        return Interval(self.accuracy, self.accuracy - half, self.accuracy + half)


def mean_score(by_dataset: dict[str, Score]) -> Score:
    """Over data sets, which weigh alike."""
    found = list(by_dataset.values())
    return Score(
        sum(score.accuracy for score in found) / len(found), hypot(*(score.error for score in found)) / len(found), found[0].source
    )


@dataclass(frozen=True)
class Change:
    """What an optimization does to the accuracy of one model, percentage points."""

    before: dict[str, Score]
    """Of the plain model, by data set."""
    after: dict[str, Score]

    @property
    def mean(self) -> Score:
        """Over the data sets; below 0: it answers worse."""
        return mean_score({name: score.minus(self.before[name]) for name, score in self.after.items()})

    @property
    def points(self) -> float:
        """Of `mean`."""
        return self.mean.accuracy

    def text(self) -> str:
        """`-0.4 ± 1.9 points (GSM8K 86 → 85, …; arXiv 2510.18672, Table 11)`."""
        parts = [f"{LABELS[name]} {self.before[name].accuracy:.0f} → {score.accuracy:.0f}" for name, score in self.after.items()]
        return f"{self.short()} ({', '.join(parts)}; {next(iter(self.after.values())).source})"

    def short(self) -> str:
        """`-0.4 ± 1.9 points`."""
        return f"{self.points:+.1f} ± {Z * self.mean.error:.1f} points"


def scores(model: str, weights: str = "bf16", kv_cache_dtype: str = "auto") -> dict[str, Score]:
    """By data set, all budgets together; empty if nothing is published. `model` is the model itself, not one of its shape."""
    return _table().get((model, weights, kv_cache_dtype), {})


def score_of(config: Config, dataset: str) -> Score | None:
    """Of the configuration's model and optimization on a data set, or their `mean`; None: nothing is published."""
    found = scores(config.model.name, config.opt.weights, config.opt.kv_cache_dtype)
    if dataset == "mean":
        return mean_score(found) if found else None
    return found.get(dataset)


def change(model: str, weights: str, kv_cache_dtype: str) -> Change | None:
    """What weights and KV-cache dtype do to a model's accuracy; None: nothing is published. A combination is not the sum of its parts."""
    before, after = scores(model), scores(model, weights, kv_cache_dtype)
    if not before or not after or (weights, kv_cache_dtype) == ("bf16", "auto"):
        return None
    return Change(before, after)


def is_plain(config: Config) -> bool:
    """Whether the model answers as its authors published it: caching and verified drafts change no answer."""
    return (config.opt.weights, config.opt.kv_cache_dtype) == ("bf16", "auto")


def refusal(config: Config) -> str:
    """Why a plan may not use the configuration's optimization, in a line; empty if it may.

    Without `plan.max_accuracy_drop` only a collapse is refused. With it, an optimization of unknown accuracy is refused, too.
    """
    allowed, name = config.plan.max_accuracy_drop, config.model.name
    if is_plain(config):
        return ""
    weights, kv_cache_dtype = config.opt.weights, config.opt.kv_cache_dtype
    # If one part alone loses so much, the combination is not trusted to lose less.
    parts = dict.fromkeys([(weights, kv_cache_dtype), (weights, "auto"), ("bf16", kv_cache_dtype)])
    known = {part: found for part in parts if (found := change(name, *part)) is not None}
    limit = COLLAPSE_POINTS if allowed is None else allowed
    for part, found in known.items():
        if -found.points > limit:
            return (
                f"{name} with {_label(*part)} changes accuracy by {found.text()}, and {limit:g} points may be lost:"
                f" plan.max_accuracy_drop={ceil(-found.points)} allows it"
            )
    if allowed is not None and (weights, kv_cache_dtype) not in known:
        return f"the accuracy of {name} with {_label(weights, kv_cache_dtype)} is not published: plan.max_accuracy_drop=null asks for none"
    return ""


def accuracy_text(config: Config) -> str:
    """What is known of the configuration's accuracy, in a line; empty for the plain model."""
    if is_plain(config):
        return ""
    found = change(config.model.name, config.opt.weights, config.opt.kv_cache_dtype)
    label = _label(config.opt.weights, config.opt.kv_cache_dtype)
    return f"{label} changes it by {found.text()}" if found else f"of {config.model.name} with {label} nothing is published"


def _label(weights: str, kv_cache_dtype: str) -> str:
    parts = [f"{weights} weights"] if weights != "bf16" else []
    return " and ".join([*parts, *([f"an {kv_cache_dtype} KV cache"] if kv_cache_dtype != "auto" else [])])


@cache
def _table() -> dict[tuple[str, str, str], dict[str, Score]]:
    """The file's rows of a data set's budgets weigh alike."""
    rows: dict[tuple[str, str, str], dict[str, list[dict[str, str]]]] = {}
    with PATH.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            rows.setdefault((row["model"], row["weights"], row["kv_cache_dtype"]), {}).setdefault(row["dataset"], []).append(row)
    return {key: {name: _pooled(by_dataset[name]) for name in LABELS if name in by_dataset} for key, by_dataset in rows.items()}


def _pooled(rows: list[dict[str, str]]) -> Score:
    return mean_score({row["max_tokens"]: Score(float(row["accuracy"]), float(row["standard_error"]), row["source"]) for row in rows})
