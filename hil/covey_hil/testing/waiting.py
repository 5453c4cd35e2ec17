"""How tests wait: for a condition, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 60.0
_EVERY_S = 0.01


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_S) -> Any:
    """What the condition gave when it was first true; fails with what was waited for."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(_EVERY_S)
    raise AssertionError(f"waited {seconds:.0f} s in vain for {what}")
