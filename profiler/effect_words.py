"""What was measured of a model's optimizations, in words: how much faster or slower, and from which batch size on."""

from __future__ import annotations

from math import log

from profiler.effect import EQUAL, Effect, Measured, Ratio, Setting

ABOUT = (
    "Dots are measured steps; lines are the cost models fitted to them, faint where the KV pool no longer holds the batch. A cross ends the"
    " batches that pool and seats hold. Times are the GPU's; tokens/s are as served, the launching thread's time included. "
    f"Times within {EQUAL:.0%} of each other are called equal: so near lie nine in ten steps of a second profile of one engine. "
    "Of sizes measured of both settings it is said how far the lines' ratio is off the measured one, in the median. "
    "Random weights: what these numbers cannot show is accuracy."
)


def words(measured: Measured) -> list[str]:
    """A sentence or two for each setting, the one that others are compared with first. Markdown emphasis around its name."""
    effects = {id(effect.setting): effect for effect in measured.effects}
    return [_compared(effects[id(each)]) if id(each) in effects else _alone(each) for each in measured.settings]


def _alone(setting: Setting) -> str:
    small, large = setting.decode_s(1) * 1e3, setting.decode_s(setting.seats) * 1e3
    return (
        f"**{setting.name}**: a decode step takes {small:.1f} ms at batch 1 and {large:.1f} ms at {setting.seats:,}, the most that its"
        f" KV pool of {setting.pool_tokens:,} tokens and its seats hold. Up to {_tokens(setting)}."
    )


def _compared(effect: Effect) -> str:
    ours, base, prefill = effect.setting, effect.base, effect.prefill
    return (
        f"**{ours.name}** against {base.name}: a decode step is {_decode(effect)}. A prefill is {speed(prefill.times[0])} at"
        f" {prefill.sizes[0]} tokens, {speed(prefill.times[-1])} at {prefill.sizes[-1]:,}{_slower(prefill, base, ' tokens')}."
        f" KV pool {ours.pool_tokens:,} tokens ({effect.pool:.2f} ×). Up to {_tokens(ours)} ({effect.tokens_per_gpu:.2f} ×)."
        f" {_checked(effect)}"
    )


def _decode(effect: Effect) -> str:
    ratio, base = effect.decode, effect.base
    text = f"{speed(ratio.times[0])} at batch 1"
    if ratio.within > 1:
        text += f", {speed(ratio.times[ratio.sizes.index(ratio.within)])} at {ratio.within:,}"
    full = min((base, effect.setting), key=lambda each: each.seats)
    if full.seats < full.engine.max_num_seqs:
        text += f", where {full.name}'s pool is full"
    return text + _slower(ratio, base, "")


def _slower(ratio: Ratio, base: Setting, unit: str) -> str:
    """Where it is slower: `; slower from 304 on, by up to 1.10 ×`; nothing where that is said already: nowhere, or everywhere."""
    ranges = ratio.slower
    if not ranges or ranges[0][:2] == (ratio.sizes[0], ratio.sizes[-1]):
        return ""
    said = []
    for first, last, worst in ranges:
        where = f"from {first:,}{unit} on" if last == ratio.sizes[-1] else f"at {first:,}{f' to {last:,}' * (first < last)}{unit}"
        more_memory = f" (had {base.name} the memory for it)" if first > ratio.within else ""
        said.append(f"{where}{more_memory} by up to {worst:.2f} ×")
    return f"; slower {' and '.join(said)}"


def _checked(effect: Effect) -> str:
    pairs = (("decode step", effect.decode), ("prefill", effect.prefill))
    said = [
        f"{len(ratio.measured)} {what}{'s' * (len(ratio.measured) != 1)}, {ratio.deviation:.1%} off"
        for what, ratio in pairs
        if len(ratio.measured)
    ]
    return f"Measured of both at one size: {'; '.join(said)}." if said else "Nothing was measured of both at one size."


def _tokens(setting: Setting) -> str:
    batch = setting.best_batch
    return f"{setting.tokens_per_gpu_s(batch):,.0f} output tokens/s/GPU, at batch {batch:,}"


def speed(ratio: float) -> str:
    """Of a time over another: `1.97 × faster`, `1.08 × slower`, or `equally fast`."""
    if abs(log(ratio)) < log(1 + EQUAL):
        return "equally fast"
    return f"{1 / ratio:.2f} × faster" if ratio < 1 else f"{ratio:.2f} × slower"
