"""How fast a host is at launching: machines with the same GPU take longer or less for the same step, so it is measured beside it."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch

REPEATS = 5
"""The least counts: what disturbs can only add."""
TURNS, LAUNCHES = 20_000, 500
"""Of the loop in Python; and kernels launched, fewer than a stream queues, so that the GPU never holds the launching thread up."""


def host_speed(device: torch.device) -> dict[str, float]:
    """Microseconds: `python_us` of a thousand turns of a loop of small objects' work; on a GPU `launch_us` of one small kernel's launch."""
    speed = {"python_us": _least_s(_interpret) / TURNS * 1e9}
    if device.type == "cuda":
        number = torch.zeros(1, device=device)
        speed["launch_us"] = _least_s(lambda: _launch(number)) / LAUNCHES * 1e6
    return {name: round(value, 3) for name, value in speed.items()}


def _interpret() -> None:
    counts: dict[int, int] = {}
    for turn in range(TURNS):
        key = turn & 63
        counts[key] = counts.get(key, 0) + 1


def _launch(number: torch.Tensor) -> None:
    for _ in range(LAUNCHES):
        number.add_(1)


def _least_s(work: Callable[[], None]) -> float:
    times_s = []
    for _ in range(REPEATS):
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        begin_s = perf_counter()
        work()
        times_s.append(perf_counter() - begin_s)
    return min(times_s)
