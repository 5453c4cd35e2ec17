"""Real processes: started, watched, ended by their own ids, with their output in a log file."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeVar

import psutil

T = TypeVar("T")

PR_SET_PDEATHSIG = 1


class ProcessError(Exception):
    """A process did not do what it was started for."""


class Child:
    """One process, and the file that holds what it prints."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, stdin: int | None = None, stdout: int | None = None) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=log if stdout is None else stdout,
                stderr=log,
                env={**os.environ, **self._environment},
                preexec_fn=_end_with_parent,  # noqa: PLW1509  # one prctl call, safe in the child
            )

    @property
    def process(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ProcessError(f"{self.name} has not been started")
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdin(self) -> IO[bytes]:
        if self.process.stdin is None:
            raise ProcessError(f"{self.name} has no pipe to its input")
        return self.process.stdin

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def check(self) -> None:
        """Raises `ProcessError` with the log's end if the process is gone."""
        if self._process is not None and (code := self._process.poll()) is not None:
            raise ProcessError(f"{self.name} ended with {code}:\n{self.tail()}")

    def stop(self, timeout_s: float = 15.0) -> int:
        """Ask the process to end; kill it if it does not within `timeout_s`. Returns its exit code."""
        if self.alive:
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()

    def kill(self) -> None:
        """SIGKILL, as a power cut or the out-of-memory killer would."""
        if self.alive:
            self.process.kill()
        self.process.wait()

    def tail(self, lines: int = 15) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return ""


def _end_with_parent() -> None:
    """So that nothing is left behind when whoever started us is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def kill_pid(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Ids of all processes below this one, children before grandchildren."""
    try:
        return [process.pid for process in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def wait_for(what: str, look: Callable[[], T | None], timeout_s: float, *, every_s: float = 0.1) -> T:
    """The first result of `look` that is not None or False; raises `ProcessError` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = look()
        if found is not None and found is not False:
            return found
        if time.monotonic() > deadline:
            raise ProcessError(f"waited {timeout_s:.0f} s for {what} in vain")
        time.sleep(every_s)


def command(name: str) -> str:
    """The path of one of our commands, from the environment that runs us."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else name
