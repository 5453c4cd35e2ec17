"""`python -m covey_agent.runner FD FOLDER {serving|background} [ARENA]`: serve the build in FOLDER over the inherited socket FD.

Started by the gateway. ARENA is the file of the memory that both share. In the background, beside a build that serves, even our own
imports are made at idle priority, in a thread of their own: they cost more than many a build takes to load.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
from pathlib import Path

from covey_agent.runner import priority

PR_SET_PDEATHSIG = 1


def main() -> int:
    descriptor, folder, background = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "background"
    shared = [int(word) for word in sys.argv[4:5]]
    # The gateway decides when a runner ends: by closing the socket. What a terminal or a service manager sends to the whole
    # group must not take the runner from under requests that are still being answered.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for inherited in (descriptor, *shared):
        os.set_inheritable(inherited, False)
    if background:
        importer = threading.Thread(target=_import_quietly, name="import")
        importer.start()
        importer.join()
    from covey_agent.runner.arena import Arena
    from covey_agent.runner.service import RunnerService

    arena = Arena(shared[0]) if shared else None
    return RunnerService(socket.socket(fileno=descriptor), folder, arena).run()


def _import_quietly() -> None:
    priority.make_idle()
    import covey_agent.runner.service  # noqa: F401  # the point is that it has been imported


if __name__ == "__main__":
    # Without the interpreter's tidy end: a runtime's own threads may still be at work, and nothing here needs saving.
    code = main()
    sys.stderr.flush()
    os._exit(code)
