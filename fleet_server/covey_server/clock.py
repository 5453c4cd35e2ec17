"""Time as a parameter: everything that needs the time is given a `Clock`."""

from __future__ import annotations

import time
from collections.abc import Callable

# Unix time in milliseconds.
Clock = Callable[[], int]


def system_clock() -> int:
    """The machine's own clock."""
    return time.time_ns() // 1_000_000
