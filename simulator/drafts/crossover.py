"""Up to which batch size speculation helps: the time that a token takes with and without it, from two measured cost models.

Verifying K drafts a sequence is nearly free while a step waits for weights to be read, and no longer when it is short of arithmetic:
somewhere on the way a step of 1 + K tokens a sequence takes longer than the tokens that it emits would have taken one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simulator.errors import UserError
from simulator.planning.sizing import Demand
from simulator.reporting.charts import ANSWER, FEWER, Chart, _limit, axes
from simulator.reporting.wording import duration
from simulator.results import folder, manifest, to_json, write_folder
from simulator.workload import generate

if TYPE_CHECKING:
    from simulator.config import Config
    from simulator.cost import CostModel
    from simulator.engine import EngineConfig

Float64 = NDArray[np.float64]

SAMPLE = 2000
"""Requests that contexts are taken from."""
SHOWN = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Batch sizes of the table."""


@dataclass(frozen=True, eq=False)
class Crossover:
    """Time of a token at every batch size from 1 on: of a decode step, over the tokens that it emits for each sequence."""

    without_s: Float64
    """float64[n]: at batch size 1, 2, …, n."""
    with_s: Float64
    """The same with speculation."""
    tokens_per_step: float
    """With speculation."""
    measured_batch: int
    """Both cost models were measured up to this batch size; beyond it they extrapolate."""

    @property
    def speedup(self) -> Float64:
        """float64[n]: above 1 where speculation helps."""
        return self.without_s / self.with_s

    @property
    def hurts_from(self) -> int | None:
        """The batch size from which on speculation is slower, whatever the size; None: it still helps at the largest."""
        helps = np.flatnonzero(self.speedup > 1)
        from_ = int(helps[-1]) + 2 if len(helps) else 1
        return from_ if from_ <= len(self.speedup) else None


def crossover(without: Demand, with_: Demand, max_batch: int) -> Crossover:
    """Compares steady decode of the same traffic's contexts at batch sizes 1 to `max_batch`.

    Args:
        without: the traffic on the engine that does not speculate.
        with_: the same traffic on the one that does, with its tokens a step.
        max_batch: the largest batch size.
    """
    batches = range(1, max_batch + 1)
    domains = [demand.cost.artifact.domain.get("decode_seqs", (0.0, float(max_batch))) for demand in (without, with_)]
    return Crossover(
        np.array([without.step_s(batch) for batch in batches]),
        np.array([with_.step_s(batch) for batch in batches]),
        with_.tokens_per_step,
        int(min(high for _, high in domains)),
    )


def crossover_of(config: Config) -> Crossover:
    """The comparison that a configuration with `opt.speculative` asks for.

    Raises:
        UserError: it does not speculate, or one of the two cost models was not measured.
    """
    acceptance = config.accepted()
    if acceptance is None:
        raise UserError("command: crossover compares an opt that speculates with the same without: give opt=eagle3, ngram or draft_model")
    without, with_ = (_engine(one) for one in (config.without_speculation(), config))
    max_model_len = min(without[0].max_model_len, with_[0].max_model_len)
    requests = generate(config.workload, config.seed, max_model_len=max_model_len, num_requests=SAMPLE).requests
    demands = Demand(requests, 1.0, *without), Demand(requests, 1.0, *with_, acceptance.tokens_per_step)
    largest = min(int(demand.most_running) for demand in demands)
    return crossover(*demands, max(min(largest, config.crossover.max_batch or largest), 1))


def _engine(config: Config) -> tuple[EngineConfig, CostModel]:
    cost = config.load_cost()
    return config.engine_config(cost), cost


def verdict(found: Crossover) -> str:
    """The answer in a sentence."""
    largest = len(found.speedup)
    if found.hurts_from is None:
        text = f"Speculation helps at every batch size up to {largest}: {found.speedup[-1]:.2f} times as fast there"
    elif found.hurts_from == 1:
        text = f"Speculation helps at no batch size up to {largest}"
    else:
        text = f"Speculation helps up to a batch of {found.hurts_from - 1} sequences on one engine, and hurts from {found.hurts_from} on"
    beyond = f"; beyond {found.measured_batch} sequences this is extrapolated" if largest > found.measured_batch else ""
    return f"{text} ({found.tokens_per_step:.2f} tokens a step{beyond})."


def crossover_text(found: Crossover) -> str:
    """The answer and a table, for the screen."""
    lines = [verdict(found), "", f"{'batch':>6}{'without':>12}{'with':>12}{'speed-up':>10}"]
    for batch in sorted({*SHOWN, found.hurts_from or 1, len(found.speedup)}):
        if batch <= len(found.speedup):
            without_s, with_s = found.without_s[batch - 1], found.with_s[batch - 1]
            lines.append(f"{batch:>6}{duration(without_s):>12}{duration(with_s):>12}{without_s / with_s:>10.2f}")
    return "\n".join(lines)


def crossover_chart(found: Crossover) -> Chart:
    """Time of a token over the batch size, with and without."""
    batches = list(range(1, len(found.speedup) + 1))
    figure = axes("sequences in the batch", "time per output token (ms)")
    for name, values_s, color in (("without speculation", found.without_s, FEWER), ("with speculation", found.with_s, ANSWER)):
        figure.add_scatter(
            x=batches,
            y=np.round(values_s * 1000, 4),
            name=name,
            mode="lines",
            line={"color": color, "width": 2},
            hovertemplate="%{x} sequences: %{y:.3g} ms<extra>" + name + "</extra>",
        )
    if found.hurts_from is not None and found.hurts_from > 1:
        _limit(figure, found.hurts_from, f"hurts from {found.hurts_from} on", vertical=True)
    figure.update_xaxes(type="log")
    figure.update_yaxes(rangemode="tozero")
    return Chart("Where speculation stops to pay", verdict(found), figure)


def write_crossover(config: Config) -> str:
    """Runs `command: crossover`: writes the figure and the numbers to the folder of the results; returns the text for the screen.

    Raises:
        UserError: see `crossover_of`.
    """
    found = crossover_of(config)
    contents = manifest(config, verdict(found))
    html = crossover_chart(found).figure.to_html(include_plotlyjs=True)
    columns = {
        "batch": np.arange(1, len(found.speedup) + 1),
        "without_s": found.without_s,
        "with_s": found.with_s,
        "speedup": found.speedup,
    }
    texts = {"manifest.json": to_json(contents), "crossover.html": html}
    target = write_folder(folder(config, contents), texts, {"crossover.parquet": columns})
    return f"{crossover_text(found)}\n\nfiles: {target}"
