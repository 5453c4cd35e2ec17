"""The build worker on the server's own machine: a child process, started again when it dies, gone when the server is.

It is an ordinary worker that speaks to the API like those elsewhere; the server never runs a toolchain itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from covey_server.fleet import child

log = logging.getLogger(__name__)
_BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_HEALTHY_AFTER_S = 60.0
_STOP_S = 5.0


def find_worker() -> str | None:
    """The path of `covey-convert`: beside this Python, else on PATH."""
    beside = Path(sys.executable).parent / "covey-convert"
    return str(beside) if beside.exists() else shutil.which("covey-convert")


class WorkerChild:
    """`start` and `stop` once each. The child runs in a session of its own, so that its own children can be ended with it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log_file: Path, nice: int) -> None:
        self._command = [sys.executable, str(Path(child.__file__)), str(os.getpid()), *command]
        self._environment = dict(environment)
        self._log_file = log_file
        self._nice = nice
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        # The kernel ties the child to the thread that starts it; this one lives as long as the server.
        self._thread = threading.Thread(target=self._run, name="local-worker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns once the child and its children are gone."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        failures = 0
        while not self._ended.is_set():
            started = time.monotonic()
            words = self._one_life()
            if self._ended.is_set():
                return
            failures = 0 if time.monotonic() - started > _HEALTHY_AFTER_S else failures + 1
            pause = _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]
            log.warning("the local build worker %s; its log is %s; again in %.0f s", words, self._log_file, pause)
            self._ended.wait(pause)

    def _one_life(self) -> str:
        """Run the child until it ends or we do; how it ended, in words."""
        try:
            with self._log_file.open("ab") as output:
                process = subprocess.Popen(
                    self._command,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            return f"cannot be started ({error})"
        with contextlib.suppress(OSError):  # it may be gone already
            os.setpriority(os.PRIO_PROCESS, process.pid, self._nice)
        while process.poll() is None and not self._ended.wait(0.2):
            pass
        _end_group(process)
        return f"ended with {process.returncode}"


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the child and its children, SIGKILL to what is left of them."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
