"""What the agent's processes use and how warm the device is, for telemetry. What cannot be read here is None."""

from __future__ import annotations

from pathlib import Path

import psutil

from covey_agent.gateway.control_api import Collected
from covey_contract.messages import Resources


class Meter:
    """CPU percentages are since the last `read`; the first says 0."""

    def __init__(self, state: Path) -> None:
        self._state = state
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
            temperature_c=_temperature(),
            throttled=_throttled(),
            capture=collected.capture if collected else None,
        )


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system


def _temperature() -> float | None:
    """The warmest thermal zone, in degrees Celsius."""
    degrees = []
    for zone in Path("/sys/class/thermal").glob("thermal_zone*/temp"):
        try:
            degrees.append(int(zone.read_text(encoding="ascii")[:16]) / 1000)
        except (OSError, ValueError):
            continue
    return max((value for value in degrees if -50 < value < 200), default=None)


def _throttled() -> bool | None:
    """Whether the processor is held back now: a Raspberry Pi says so itself (bits 0 to 3 of `get_throttled`)."""
    for path in ("/sys/devices/platform/soc/soc:firmware/get_throttled",):
        try:
            return bool(int(Path(path).read_text(encoding="ascii")[:16], 16) & 0xF)
        except (OSError, ValueError):
            continue
    return None
