"""How busy the device's accelerators are, where the kernel or a driver's library tells. What cannot be read is left out.

Sources: NVIDIA Jetson's integrated GPU, `/sys/devices/platform/gpu.0/load` in per mille (what `tegrastats` shows as GR3D_FREQ; NVML answers
"not supported" there); Intel's NPU, `npu_busy_time_us` (Linux, `Documentation/ABI/testing/sysfs-driver-ivpu`); Rockchip's GPU and NPU, devfreq's
`load` as `PERCENT@HERTZ`; amdgpu's `gpu_busy_percent`; other NVIDIA GPUs by NVML, where `pynvml` (nvidia-ml-py) is installed.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from covey_contract.messages import MAX_ACCELERATORS

log = logging.getLogger(__name__)

_JETSON = ("devices/platform/gpu.0/load", "devices/gpu.0/load")
_READ_MAX = 64

Loads = dict[str, float]


class Accelerators:
    """`read` gives percent by name: `gpu`, `npu`, and from the second of a kind on `gpu1` …"""

    def __init__(self, sys: Path = Path("/sys"), nvml: Callable[[], Iterator[float]] | None = None) -> None:
        self._sys = sys
        self._nvml = nvml if nvml is not None else _nvml_reader()
        self._busy: dict[Path, tuple[float, int]] = {}  # when, and microseconds of work until then

    def read(self, now: float) -> Loads:
        """`now` is monotonic seconds. A counter's first reading says nothing yet."""
        kinds = {"gpu": list(self._gpus()), "npu": list(self._npus(now))}
        named = [
            (kind if number == 0 else f"{kind}{number}", round(min(100.0, max(0.0, percent)), 1))
            for kind, loads in kinds.items()
            for number, percent in enumerate(loads)
        ]
        return dict(named[:MAX_ACCELERATORS])

    def _gpus(self) -> Iterator[float]:
        for name in _JETSON:
            if (per_mille := _number(self._sys / name)) is not None:
                yield per_mille / 10
                break
        for place in self._found("class/drm", "card[0-9]*/device/gpu_busy_percent"):
            if (percent := _number(place)) is not None:
                yield percent
        yield from self._devfreq("gpu")
        if self._nvml is not None:
            yield from self._nvml()

    def _npus(self, now: float) -> Iterator[float]:
        for place in self._found("class/accel", "accel*/device/npu_busy_time_us"):
            busy_us = _number(place)
            if busy_us is None:
                continue
            before, self._busy[place] = self._busy.get(place), (now, int(busy_us))
            if before is not None and now > before[0]:
                yield (busy_us - before[1]) / ((now - before[0]) * 1e6) * 100
        yield from self._devfreq("npu")

    def _devfreq(self, kind: str) -> Iterator[float]:
        for place in self._found("class/devfreq", f"*.{kind}/load"):
            if (percent := _number(place, until="@")) is not None:
                yield percent

    def _found(self, folder: str, pattern: str) -> list[Path]:
        return sorted((self._sys / folder).glob(pattern))


def _number(path: Path, *, until: str = "") -> float | None:
    try:
        with path.open(encoding="ascii") as file:
            text = file.read(_READ_MAX)
        return float(text.partition(until)[0] if until else text)
    except (OSError, ValueError):
        return None


def _nvml_reader() -> Callable[[], Iterator[float]] | None:
    """Reads all GPUs of NVIDIA's discrete driver; None where there is none, or no library for it."""
    if not Path("/proc/driver/nvidia/version").exists() or importlib.util.find_spec("pynvml") is None:
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
        handles: list[Any] = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        log.info("NVML tells nothing of GPUs here: %s", error)
        return None

    def read() -> Iterator[float]:
        for handle in handles:
            try:
                yield float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
            except pynvml.NVMLError:
                continue

    return read
