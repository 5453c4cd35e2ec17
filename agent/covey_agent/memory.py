"""How much memory the device can still give, as the kernel tells it: the machine's, or the control group's where that is less."""

from __future__ import annotations

from pathlib import Path

import psutil

_MAX_BYTES = 4096
# Limit and use of our control group, as a container sees them: version 2, then version 1.
_FILES = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
_STATS = ("memory.stat", "memory/memory.stat")


def available_mb(groups: Path = Path("/sys/fs/cgroup")) -> float:
    """In MB (10^6 bytes)."""
    available = psutil.virtual_memory().available
    for (limit_name, used_name), stat_name in zip(_FILES, _STATS, strict=True):
        limit, used = _number(groups / limit_name), _number(groups / used_name)
        if limit is not None and used is not None:
            # Pages of files that were read are taken back before anything is refused.
            available = min(available, max(0, limit - used + _reclaimable(groups / stat_name)))
    return available / 1e6


def _number(path: Path) -> int | None:
    """None where there is no such group, or no limit (`max`)."""
    text = _text(path)
    return int(text) if text.isdigit() else None


def _reclaimable(path: Path) -> int:
    for line in _text(path).splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.isdigit():
            return int(value)
    return 0


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode("ascii", "replace").strip()
    except OSError:
        return ""
