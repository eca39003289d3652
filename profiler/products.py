"""Matrix products by themselves: what those of a step take at each number of rows, without the step.

Which kernel multiplies, and how many multiprocessors its last tiles leave idle, changes from one number of rows to the next: steps at
some sizes tell little of those between. The products of a few layers take a hundredth of a step's trouble to time, so they are timed at
all sizes, and the fit of whole steps follows their shape (`profiler/tables.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch

LAYERS = 4
"""Taken of the model, far apart: together larger than what the GPU caches (50 MB), so that their weights are read from its memory."""
REPEATS = 3
_LAYER = re.compile(r"\.layers\.(\d+)\.")

SecondsOf = Callable[[Callable[[], None], float], float]
"""(work, seconds for which the GPU is held busy before) → what the GPU takes for it."""


class Products:
    """The linear layers of some of a model's decoder layers, as vLLM runs them, quantization of their inputs included.

    On several GPUs, those of one, without what they then add up (vLLM 0.26 `model_executor/layers/linear.py`). Experts are not among
    them: how many rows each gets is the router's business.
    """

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype, seconds_of: SecondsOf) -> None:
        from vllm.model_executor.layers.linear import LinearBase

        by_layer: dict[int, list[Any]] = {}
        for name, module in model.named_modules():
            if isinstance(module, LinearBase) and (found := _LAYER.search(f".{name}")):
                by_layer.setdefault(int(found[1]), []).append(module)
        numbers = sorted(by_layer)
        taken = [numbers[i * len(numbers) // LAYERS] for i in range(LAYERS)] if len(numbers) > LAYERS else numbers
        self._linears = [module for number in taken for module in by_layer[number]]
        self._share = len(taken) / max(len(numbers), 1)
        self._dtype, self._seconds_of = dtype, seconds_of

    def seconds(self, rows: int) -> float | None:
        """What all layers' products of so many rows take; None: the model has none, or there is no memory for them."""
        if not self._linears:
            return None
        device = next(self._linears[0].parameters()).device
        try:
            inputs = {width: torch.randn(rows, width, dtype=self._dtype, device=device) for width in map(_width, self._linears)}
            self._run(inputs)  # a new shape chooses its kernels, and compiles some
            begin_s = perf_counter()
            self._run(inputs)
            launch_s = perf_counter() - begin_s
            return median(self._seconds_of(lambda: self._run(inputs), 1.3 * launch_s + 1e-4) for _ in range(REPEATS)) / self._share
        except torch.OutOfMemoryError:
            return None

    def _run(self, inputs: dict[int, torch.Tensor]) -> None:
        for linear in self._linears:
            linear.quant_method.apply(linear, inputs[_width(linear)], None if linear.skip_bias_add else linear.bias)


def _width(linear: Any) -> int:
    """Of the rows that it takes, on one of several GPUs."""
    return int(getattr(linear, "input_size_per_partition", linear.input_size))
