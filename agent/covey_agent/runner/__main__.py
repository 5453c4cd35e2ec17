"""`python -m covey_agent.runner FD FOLDER`: serve the build in FOLDER over the inherited socket FD. Started by the gateway."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path

from covey_agent.runner.service import RunnerService

PR_SET_PDEATHSIG = 1


def main() -> int:
    descriptor, folder = int(sys.argv[1]), Path(sys.argv[2])
    # The gateway decides when a runner ends: by closing the socket. What a terminal or a service manager sends to the whole
    # group must not take the runner from under requests that are still being answered.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.set_inheritable(descriptor, False)
    return RunnerService(socket.socket(fileno=descriptor), folder).run()


if __name__ == "__main__":
    # Without the interpreter's tidy end: a runtime's own threads may still be at work, and nothing here needs saving.
    code = main()
    sys.stderr.flush()
    os._exit(code)
