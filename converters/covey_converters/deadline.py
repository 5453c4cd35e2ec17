"""A time limit for what runs in this thread: a recipe that takes too long is one that does not work, and the next one gets its chance.

The kernel's timer interrupts between two steps of Python, of which every toolchain's loop has many; what never comes back to Python
ends with the whole build's deadline (`covey_converters.isolation`). Signals reach the main thread alone: in any other there is no limit.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
