"""Loading beside a build that serves, without taking its time: idle scheduling for the thread that loads.

Linux schedules threads, not processes, and one without privileges may not come back from SCHED_IDLE. So a build loads in a
thread of its own that ends there, while the main thread, which will serve, never leaves normal priority. Threads that a runtime
starts while it loads inherit the idle policy and would keep it for their life: `restore` takes them back, and where that is not
allowed (`may_return`), a runtime that computes in such threads is loaded at normal priority instead.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

# Above every ordinary process, where SCHED_IDLE is not to be had (gVisor, some containers).
FALLBACK_NICE = 19


def make_idle() -> None:
    """Put the calling thread at idle priority; where the kernel knows none, at the lowest ordinary one."""
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), FALLBACK_NICE)


def may_return() -> bool:
    """Whether a thread of this process may go back from idle to normal priority; tried out in a thread that ends at once."""
    outcome: list[bool] = []

    def attempt() -> None:
        make_idle()
        outcome.append(_make_normal(threading.get_native_id()))

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return outcome == [True]


def restore() -> bool:
    """Take every thread of this process back to normal priority; True if none was left behind."""
    threads = [int(task.name) for task in Path("/proc/self/task").iterdir()]
    return all([_make_normal(thread) for thread in threads])


def _make_normal(thread: int) -> bool:
    try:
        if os.sched_getscheduler(thread) == os.SCHED_IDLE:
            os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
        if os.getpriority(os.PRIO_PROCESS, thread) == FALLBACK_NICE:
            os.setpriority(os.PRIO_PROCESS, thread, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return True
