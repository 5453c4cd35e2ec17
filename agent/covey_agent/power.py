"""Whether the device runs on mains power, as the kernel tells it.

Source: Linux's `Documentation/ABI/testing/sysfs-class-power`. As in systemd's `ConditionACPower`: a supply that is online is mains; a
device without a battery of its own (most boards) is on mains; else it is not if a battery discharges.
"""

from __future__ import annotations

from pathlib import Path

_MAX_BYTES = 64


def on_mains(supplies: Path = Path("/sys/class/power_supply")) -> bool:
    discharging = False
    for supply in supplies.glob("*"):
        if _read(supply / "scope") == "Device":  # a mouse's battery, say
            continue
        if _read(supply / "type") in ("Battery", "UPS"):
            discharging |= _read(supply / "status") == "Discharging"
        elif _read(supply / "online") not in ("", "0"):
            return True
    return not discharging


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode("ascii", "replace").strip()
    except OSError:  # the supply was unplugged, or does not tell
        return ""
