"""A time limit for what runs in this thread: a recipe that takes too long is one that does not work, and the next one gets its chance.

The kernel's timer interrupts between two steps of Python, of which every toolchain's loop has many; what never comes back to Python
ends with the whole build's deadline (`covey_converters.isolation`). Signals reach the main thread alone: in any other there is no limit.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN_S = 1.0


class OutOfTime(BaseException):  # noqa: N818  # no error of anybody's; toolchains must not catch it with theirs
    """The time is over."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises `OutOfTime` inside the block once it has run for so many seconds. Blocks do not nest."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(_number: int, _frame: FrameType | None) -> None:
        raise OutOfTime

    left = again = 0.0
    handler = signal.signal(signal.SIGALRM, over)
    began = time.monotonic()
    try:
        # Again and again: Python drops what is raised while it clears an object away.
        left, again = signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_S)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, handler)
        if left:  # somebody's own limit, which goes on
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 0.001), again)
