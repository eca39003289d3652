"""Clocks, power, temperature and energy of the GPU, where NVML is there to tell."""

from __future__ import annotations

import os
from contextlib import suppress
from statistics import median
from typing import Any

_POWER_INSTANT = 186
"""`NVML_FI_DEV_POWER_INSTANT`: `nvmlDeviceGetPowerUsage` is an average over a second on Hopper."""


class Nvml:
    """The sensors of the first GPU that this process may use; every reading is empty on a machine without NVML."""

    def __init__(self) -> None:
        self._nvml: Any = None
        with suppress(ImportError):
            import pynvml

            with suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                self._device = _first_visible(pynvml)
                self._nvml = pynvml

    def identity(self) -> dict[str, Any]:
        """Device, driver and limits."""
        return self._read(
            device=lambda n, d: n.nvmlDeviceGetName(d),
            driver=lambda n, _: n.nvmlSystemGetDriverVersion(),
            power_limit_w=lambda n, d: n.nvmlDeviceGetEnforcedPowerLimit(d) / 1e3,
            max_sm_clock_mhz=lambda n, d: n.nvmlDeviceGetMaxClockInfo(d, n.NVML_CLOCK_SM),
        )

    def state(self) -> dict[str, Any]:
        """Clocks, power and temperature at this moment; why clocks are held down (NVML's bit mask)."""
        return self._read(
            sm_clock_mhz=lambda n, d: n.nvmlDeviceGetClockInfo(d, n.NVML_CLOCK_SM),
            memory_clock_mhz=lambda n, d: n.nvmlDeviceGetClockInfo(d, n.NVML_CLOCK_MEM),
            power_w=lambda n, d: n.nvmlDeviceGetFieldValues(d, [_POWER_INSTANT])[0].value.uiVal / 1e3,
            temperature_c=lambda n, d: n.nvmlDeviceGetTemperature(d, n.NVML_TEMPERATURE_GPU),
            throttle_reasons=lambda n, d: n.nvmlDeviceGetCurrentClocksThrottleReasons(d),
        )

    @staticmethod
    def spread(states: list[dict[str, Any]]) -> dict[str, list[float]]:
        """Least, median and greatest reading of each sensor."""
        names = states[0] if states else {}
        return {name: [f([state[name] for state in states if name in state]) for f in (min, median, max)] for name in names}

    def energy_j(self) -> float | None:
        """Energy since the driver was loaded; the counter moves every 20 to 100 ms."""
        joules: float | None = self._read(energy=lambda n, d: n.nvmlDeviceGetTotalEnergyConsumption(d) / 1e3).get("energy")
        return joules

    def _read(self, **readings: Any) -> dict[str, Any]:
        values: dict[str, Any] = {}
        if self._nvml is not None:
            for name, reading in readings.items():
                with suppress(self._nvml.NVMLError, AttributeError):  # a sensor that this driver, or this version of NVML, does not have
                    value = reading(self._nvml, self._device)
                    values[name] = value.decode() if isinstance(value, bytes) else value
        return values


def _first_visible(nvml: Any) -> Any:
    """NVML counts all GPUs of a machine, CUDA only those in `CUDA_VISIBLE_DEVICES` (indices, or UUIDs)."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"
    return nvml.nvmlDeviceGetHandleByIndex(int(first)) if first.isdigit() else nvml.nvmlDeviceGetHandleByUUID(first)
