"""A time limit for what runs in this thread: a recipe that takes too long is one that does not work, and the next one gets its chance.

A second thread has the interpreter raise `OutOfTime` in the first, between two steps of Python, of which every toolchain's loop has
many; what never comes back to Python ends with the whole build's deadline (`covey_converters.isolation`). No signal is used: the
kernel's alarm is one for the whole process, which may have its own use for it, and ends a process that does not expect it.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_AGAIN_S = 1.0


class OutOfTime(BaseException):  # noqa: N818  # no error of anybody's; toolchains must not catch it with theirs
    """The time is over."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises `OutOfTime` inside the block once it has run for so many seconds, and never after it. Blocks do not nest."""
    limit = _Limit(seconds)
    try:
        yield
    finally:
        limit.lift()


class _Limit:
    def __init__(self, seconds: float) -> None:
        self._thread = threading.get_ident()
        self._seconds = seconds
        self._lifted = threading.Event()
        self._lock = threading.Lock()
        self._watcher = threading.Thread(target=self._watch, name="deadline", daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        wait_s = self._seconds
        while not self._lifted.wait(wait_s):
            with self._lock:
                if not self._lifted.is_set():
                    _raise_in(self._thread, OutOfTime)
            # Again and again: Python drops what is raised while it clears an object away.
            wait_s = _AGAIN_S

    def lift(self) -> None:
        """From here on nothing is raised any more; what is raised right now, when all is done, is dropped."""
        while self._watcher.is_alive():
            try:
                with self._lock:
                    self._lifted.set()
                    _raise_in(self._thread, None)  # takes back what has not been raised yet
                self._watcher.join()
            except OutOfTime:
                continue


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Source: "Thread State and the Global Interpreter Lock" of Python's C API, PyThreadState_SetAsyncExc."""
    raised = ctypes.py_object(error) if error is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), raised)
