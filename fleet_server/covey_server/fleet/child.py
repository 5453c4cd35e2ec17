"""Becomes the command it is given, which then ends when its parent does: `python child.py PARENT_PID COMMAND …`.

A wrapper of its own, since a `preexec_fn` is unsafe in a process with threads. On Linux the kernel sends SIGTERM to the
command when the thread that started it ends; elsewhere the command merely runs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before we asked to hear of it
            sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - becoming the command without a shell is the point


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
