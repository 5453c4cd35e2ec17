"""Loading beside a build that serves, without taking its time: idle scheduling for the thread that loads.

Linux schedules threads, not processes, and one without privileges may not come back from SCHED_IDLE. So a build loads in a
thread of its own that ends there, while the main thread, which will serve, never leaves normal priority; where a process may come back,
it begins at idle priority as a whole (`idle_command`), since an interpreter's start alone takes long enough to be felt. Threads that a runtime
starts while it loads inherit the idle policy and would keep it for their life: `restore` takes them back, and where that is not
allowed (`may_return`), a runtime that computes in such threads is loaded at normal priority instead.
"""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

# Above every ordinary process, where SCHED_IDLE is not to be had (gVisor, some containers).
FALLBACK_NICE = 19
CHRT = "chrt"  # of util-linux
_TRIAL_S = 5.0


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


def idle_command() -> tuple[str, ...]:
    """What to write before a command so that it is at idle priority from its first instruction on, an interpreter's start included; nothing
    where that is not to be had, or where the process might never come back from there. Tried out: it starts a process."""
    found = next((path for folder in os.get_exec_path() if os.access(path := f"{folder}/{CHRT}", os.X_OK)), None)
    if found is None or not may_return():
        return ()
    words = (found, "--idle", "0")
    try:
        done = subprocess.run([*words, "true"], capture_output=True, timeout=_TRIAL_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return words if done.returncode == 0 else ()


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
