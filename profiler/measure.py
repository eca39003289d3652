"""How one point of the grid is measured: sequences placed, warmed up, stepped as served and behind a hold."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

from profiler.engine import Engine
from profiler.nvml import Nvml
from profiler.points import LIFE_STEPS, Point

WARM_STEPS = 3
"""Not recorded: the first steps of a shape compile kernels, refill the queue and bring the clocks up."""
SERVED_STEPS, HELD_STEPS = 6, 4
REPEATS = 2
"""Of steps with a prompt. Repeats lie within 0.1 to 0.4 % of each other, neighbouring batch sizes 1 to 5 %: time is better spent on
more sizes."""
SUSTAINED_S = 2.5
"""Of prompts one after the other: a GPU at its power limit settles within a second."""
ENERGY_STEPS = 10
ENERGY_S = 1.2
"""Long against the interval of the energy counter."""
LONG_S = 0.05
"""Steps from here on are measured once: their noise is small against them."""

Row = dict[str, Any]


def measure(engine: Engine, point: Point, sensors: Nvml) -> dict[str, Any]:
    """Measures `point`: its fields, `rows` (a step each), and the sensors' readings."""
    how: dict[str, Callable[[Engine, Point], list[Row]]] = {
        "decode": _decode,
        "prefill": _prefill,
        "mixed": _mixed,
        "sampling": _sampling,
        "energy": _energy,
        "sustained": _sustained,
        "shared": _shared,
    }
    begin_s, begin_j = perf_counter(), sensors.energy_j()
    rows = how[point.kind](engine, point)
    state, end_j = sensors.state(), sensors.energy_j()
    return {
        "point": point.name,
        "kind": point.kind,
        "rows": rows,
        "took_s": perf_counter() - begin_s,
        "energy_j": None if begin_j is None or end_j is None else end_j - begin_j,
        **state,
    }


def _decode(engine: Engine, point: Point) -> list[Row]:
    names = _place(engine, point)
    rows = _decodes(engine)
    _clear(engine, names)
    return rows


def _decodes(engine: Engine) -> list[Row]:
    rows = _steps(engine, SERVED_STEPS)
    # Where the GPU was found waiting for the launch, its own time shows only behind a hold.
    if engine.holds and not all(row["queued"] for row in rows):
        engine.hold(_hold_s(rows))
        rows += _steps(engine, HELD_STEPS)
        engine.hold(0.0)
    return rows


def _sampling(engine: Engine, point: Point) -> list[Row]:
    """The sampler with a trained model's logits, then with those that dummy weights have in service, as in a recorded trace."""
    names = _place(engine, point)
    rows = _steps(engine, SERVED_STEPS)
    engine.as_served(dummy=True)
    rows += _steps(engine, SERVED_STEPS)
    engine.as_served(dummy=False)
    _clear(engine, names)
    return rows


def _energy(engine: Engine, point: Point) -> list[Row]:
    names = _place(engine, point)
    begin_s, rows = perf_counter(), []
    for _ in range(point.life_steps // (WARM_STEPS + ENERGY_STEPS) - 1):
        rows = _steps(engine, ENERGY_STEPS)
        if perf_counter() - begin_s > ENERGY_S:
            break
    _clear(engine, names)
    return rows


def _sustained(engine: Engine, point: Point) -> list[Row]:
    """Steps with prompts, from the first on: one right after the other, or, beside sequences that decode, half of the time."""
    names = _place(engine, point)
    between = _decodes_a_prompt(engine, point) if names else 0
    engine.drain()
    until_s = perf_counter() + SUSTAINED_S
    while perf_counter() < until_s:
        _prompts(engine, point)
        for _ in range(1 + between):
            engine.step()
    engine.abort(names)
    return [row for row in engine.drain() if row["prefill_seqs"]]


def _decodes_a_prompt(engine: Engine, point: Point) -> int:
    """Steps that decode, in the time of one with a prompt."""
    _prompts(engine, point)
    rows = _steps(engine, WARM_STEPS + 1)
    prompt_s, decode_s = float(max(row["gpu_s"] for row in rows)), float(rows[-1]["gpu_s"])
    return max(round(prompt_s / decode_s), 1)


def _shared(engine: Engine, point: Point) -> list[Row]:
    """Decodes of sequences that share heads, then of others with the same contexts that share nothing."""
    heads = [engine.head(point.chunk) for _ in range(point.num_chunks)]
    for head in heads:
        engine.add(len(head), head=head, output_tokens=1)
    while engine.busy:
        engine.step()
    contexts = [point.chunk + context for context in point.contexts]
    names = [engine.add(context, head=heads[i % len(heads)], output_tokens=LIFE_STEPS) for i, context in enumerate(contexts)]
    _until_all_decode(engine, len(names))
    engine.fill_kv_cache()
    shared_tokens = (len(names) - len(heads)) * point.chunk
    rows = [row | {"decode_shared_tokens": shared_tokens} for row in _decodes(engine)]
    _clear(engine, names)
    names = [engine.add(context, claimed_tokens=context - 1, output_tokens=LIFE_STEPS) for context in contexts]
    rows += [row | {"decode_shared_tokens": 0} for row in _decodes(engine)]
    _clear(engine, names)
    return rows


def _until_all_decode(engine: Engine, num_seqs: int) -> None:
    for _ in range(LIFE_STEPS // 2):
        engine.step()
        rows = engine.drain()
        if rows and rows[-1]["decode_seqs"] == num_seqs:
            return


def _prefill(engine: Engine, point: Point) -> list[Row]:
    def chunks(repeats: int) -> list[Row]:
        for _ in range(repeats):
            _prompts(engine, point)
            while engine.busy:
                engine.step()
        return engine.drain()

    warm = chunks(1)
    repeats = 1 if warm[-1]["gpu_s"] > LONG_S else REPEATS
    rows = chunks(repeats)
    if engine.holds:
        engine.hold(_hold_s(rows))
        rows += chunks(repeats)
        engine.hold(0.0)
    return rows


def _mixed(engine: Engine, point: Point) -> list[Row]:
    def passes(repeats: int) -> list[Row]:
        """A prompt joins the decoding batch, and two plain steps follow: neighbours show what a step does to them."""
        for _ in range(repeats):
            _prompts(engine, point)
            for _ in range(3):
                engine.step()
        rows = engine.drain()
        # The step in flight when the last one was drained: the GPU may have waited for it.
        return rows[1:] if engine.asynchronous else rows

    names = _place(engine, point)
    _steps(engine, 1)
    warm = passes(1)
    repeats = 1 if max(row["gpu_s"] for row in warm) > LONG_S else REPEATS
    rows = passes(repeats)
    if engine.holds:
        engine.hold(_hold_s(rows), only_joined=True)
        rows += passes(repeats)
        engine.hold(0.0)
    _clear(engine, names)
    return rows


def _place(engine: Engine, point: Point) -> list[str]:
    """The point's decoding sequences: all of their context but the last token is claimed, so their first step already is a decode."""
    output_tokens = point.life_steps * engine.tokens_per_decode
    return [engine.add(context, claimed_tokens=context - 1, output_tokens=output_tokens) for context in point.contexts]


def _prompts(engine: Engine, point: Point) -> None:
    """The point's chunks: prompts that end with the one token that their last chunk yields."""
    for _ in range(point.num_chunks):
        engine.add(point.start + point.chunk, claimed_tokens=point.start, output_tokens=1)


def _steps(engine: Engine, num_steps: int) -> list[Row]:
    """The last `num_steps` of a few more."""
    for _ in range(WARM_STEPS + num_steps):
        engine.step()
    return engine.drain()[-num_steps:]


def _clear(engine: Engine, names: list[str]) -> None:
    engine.abort(names)
    engine.drain()


def _hold_s(rows: list[Row]) -> float:
    """Long enough for any of these launches, with some air."""
    longest_s: float = max(row["launch_s"] for row in rows)
    return 1.3 * longest_s + 1e-3


def summary(rows: list[Row]) -> str:
    """One line for the progress bar: the step's median GPU time."""
    return f"{1e3 * median(row['gpu_s'] for row in rows):.2f} ms" if rows else "nothing"
