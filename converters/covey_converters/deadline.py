"""A time limit for one recipe: one that takes too long is one that does not work, and the next one gets its chance.

The recipe runs in a thread of its own, in which the interpreter raises `OutOfTime` between two steps of Python, of which every
toolchain's loop has many; what never comes back to Python ends with the whole build's deadline (`covey_converters.isolation`). No signal
is used: the kernel's alarm is one for the whole process, which may have its own use for it. And nothing is ever raised in the caller's
thread, where it could come too late and hit somebody else.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_AGAIN_S = 1.0


class OutOfTime(SystemExit):  # noqa: N818  # no error of anybody's: toolchains must not catch it with theirs, nor a thread's end tell it
    """The time is over."""


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns or raises; raises `OutOfTime` if it had to be stopped after so many seconds."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001  # raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, name="recipe", daemon=True)
    thread.start()
    thread.join(seconds)
    while thread.is_alive():
        _stop(thread)
        # Again and again: Python drops what is raised while it clears an object away.
        thread.join(_AGAIN_S)
    if results:
        return results[0]
    raise errors[0] if errors else OutOfTime


def _stop(thread: threading.Thread) -> None:
    """Source: "Thread State and the Global Interpreter Lock" of Python's C API, PyThreadState_SetAsyncExc."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(OutOfTime))
