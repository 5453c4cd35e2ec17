"""What the agent's processes use, how busy the accelerators are and how warm the device is, for telemetry. What cannot be read here is None."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil

from covey_agent.accelerators import Accelerators
from covey_agent.gateway.control_api import Collected
from covey_contract.messages import Captured, Resources

_HELD_BACK = ("thermal-cpufreq", "thermal-devfreq")
_TOLD_BY_FIRMWARE = "throttle-alert"


class Meter:
    """CPU percentages are since the last `read`; the first says 0. `may_leave`: whether the server may fetch samples that are kept."""

    def __init__(self, state: Path, sys: Path = Path("/sys"), *, may_leave: bool = False) -> None:
        self._state = state
        self._may_leave = may_leave
        self._sys = sys
        self._throttling = Throttling(sys)
        self._accelerators = Accelerators(sys)
        self._cpu_s = 0.0
        self._at: float | None = None

    def read(self, now: float, gateway_pid: int | None, collected: Collected | None) -> Resources:
        """`now` is monotonic seconds."""
        own = psutil.Process()
        cpu_s = _cpu_s(own)
        if gateway_pid is not None:
            try:
                gateway = psutil.Process(gateway_pid)
                cpu_s += _cpu_s(gateway) + sum(_cpu_s(child) for child in gateway.children(recursive=True))
            except psutil.Error:
                pass  # it has just ended; the next window tells
        elapsed = now - self._at if self._at is not None else 0.0
        percent = max(0.0, cpu_s - self._cpu_s) / elapsed * 100 if elapsed > 0 else 0.0
        self._cpu_s, self._at = cpu_s, now
        return Resources(
            cpu_percent=round(percent, 2),
            control_rss_mb=own.memory_info().rss / 1e6,
            gateway_rss_mb=collected.gateway_rss_mb if collected else 0.0,
            runners_rss_mb=collected.runners_rss_mb if collected else 0.0,
            memory_available_mb=psutil.virtual_memory().available / 1e6,
            storage_free_mb=psutil.disk_usage(str(self._state)).free / 1e6,
            capture=self._captured(collected),
            temperature_c=_temperature(self._sys),
            throttled=self._throttling.read(),
            accelerators=self._accelerators.read(now),
        )

    def _captured(self, collected: Collected | None) -> Captured | None:
        told = collected.capture if collected else None
        return None if told is None else msgspec.structs.replace(told, may_leave=self._may_leave)


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system


def _temperature(sys: Path) -> float | None:
    """The warmest thermal zone, in degrees Celsius."""
    degrees = [
        millidegrees / 1000 for zone in sys.glob("class/thermal/thermal_zone*/temp") for millidegrees in _numbers(zone)
    ]
    return max((value for value in degrees if -50 < value < 200), default=None)


class Throttling:
    """Whether the processor or an accelerator is held back, as far as the kernel says: now, or at any time since the last look.

    Sources: Raspberry Pi's `get_throttled`, bits 0 to 3; Linux's thermal cooling devices (`Documentation/driver-api/thermal/sysfs-api.rst`)
    of frequencies, and those by which Jetson's firmware tells of hardware throttling; x86's `core_throttle_count`."""

    def __init__(self, sys: Path) -> None:
        self._sys = sys
        self._counted: int | None = None

    def read(self) -> bool | None:
        """None: nothing here tells."""
        told = [*self._firmware(), *self._cooling(), *self._counts()]
        return any(told) if told else None

    def _firmware(self) -> Iterator[bool]:
        for bits in _numbers(self._sys / "devices/platform/soc/soc:firmware/get_throttled", base=16):
            yield bool(bits & 0xF)

    def _cooling(self) -> Iterator[bool]:
        for place in self._sys.glob("class/thermal/cooling_device*"):
            try:
                kind = (place / "type").read_text(encoding="ascii")[:64].strip()
            except (OSError, ValueError):
                continue
            if kind == "Processor" or kind.startswith(_HELD_BACK) or kind.endswith(_TOLD_BY_FIRMWARE):
                yield from (state > 0 for state in _numbers(place / "cur_state"))

    def _counts(self) -> Iterator[bool]:
        counts = [
            count
            for place in self._sys.glob("devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count")
            for count in _numbers(place)
        ]
        if counts:
            before, self._counted = self._counted, sum(counts)
            yield before is not None and self._counted > before


def _numbers(path: Path, *, base: int = 10) -> list[int]:
    """The number in a file of the kernel's, or none."""
    try:
        with path.open(encoding="ascii") as file:
            return [int(file.read(32), base)]
    except (OSError, ValueError):
        return []
