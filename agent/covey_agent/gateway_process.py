"""The gateway as a process: starts it in a session of its own, finds a living one again, ends one that hangs.

It outlives control on purpose: control may crash or be replaced while models go on serving.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import IO

import psutil

from covey_agent.errors import AgentError, GatewayError, StepError
from covey_agent.gateway.control_api import GatewayStatus, Shutdown
from covey_agent.gateway_client import GatewayClient

log = logging.getLogger(__name__)

# A Unix socket's path may be about 100 bytes long.
_LONGEST_SOCKET = 100
_PATIENCE_S = 15.0  # so long may a living gateway be silent
_RESTART_FIRST_S = 0.5
_RESTART_MOST_S = 30.0


def run_folder(state: Path) -> Path:
    """Where the sockets are: in the state folder, or, if that path is too long or was on a disk that was read-only at the start, in one of
    our own in the temporary folder."""
    folder = state.resolve() / "run"
    other = _other_folder(folder)
    if len(os.fsencode(folder / "inference.sock")) > _LONGEST_SOCKET or (other / "gateway.sock").exists():
        return other
    return folder


def prepare_run_folder(state: Path) -> Path:
    """Make it, for this user alone. Raises `AgentError` if somebody else's folder is there."""
    folder = run_folder(state)
    if folder.is_dir() and not os.access(folder, os.W_OK):
        folder = _other_folder(folder)
        log.error("%s cannot be written; the gateway's sockets are in %s", state, folder)
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.is_symlink():
        raise AgentError(f"{folder} belongs to somebody else")
    return folder


def _other_folder(folder: Path) -> Path:
    name = sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"covey-{os.getuid()}-{name}"


class GatewayProcess:
    """`poll` gives the living gateway's status, starting one where there is none; None while there is none yet. `options` are further
    words of its command line."""

    def __init__(self, folder: Path, log_file: Path, port: int, options: Sequence[str] = ()) -> None:
        self.client = GatewayClient(folder / "gateway.sock")
        self._folder = folder
        self._log_file = log_file
        self._port = port
        self._options = tuple(options)
        self._child: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None
        self._silent_since: float | None = None
        self._starts = 0
        self._next_start = 0.0

    @property
    def pid(self) -> int | None:
        return self._pid

    def find(self) -> GatewayStatus | None:
        """A gateway that lives already, and answers."""
        try:
            status = self.client.status()
        except (GatewayError, StepError):
            return None
        self._pid = status.pid
        return status

    def check_port(self) -> None:
        """Raises `AgentError` if somebody else listens where the gateway is to."""
        if self._port == 0:
            return
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self._port))
            except OSError as error:
                raise AgentError(f"port {self._port} on 127.0.0.1 cannot be used: {error.strerror}") from error

    def poll(self, now: float) -> GatewayStatus | None:
        """The status, or None after having done what is due to get one. `now` is monotonic seconds."""
        if self._child is not None and self._child.poll() is not None:
            log.warning("the gateway ended with %s", self._child.returncode)
            self._child = None
            self._pid = None
        status = self.find()
        if status is not None:
            self._silent_since = None
            if now > self._next_start + _RESTART_MOST_S:
                self._starts = 0
            return status
        if (old := self._living()) is not None:
            self._silent_since = self._silent_since or now
            if now - self._silent_since > _PATIENCE_S:
                log.error("the gateway (pid %d) has not answered for %.0f s and is ended", old, _PATIENCE_S)
                _kill(old)
                self._silent_since = None
            return None
        if now >= self._next_start:
            self._start(now)
        return None

    def stop(self, timeout_s: float = 10.0) -> None:
        """End it, politely first."""
        pid = self._living()
        if pid is None:
            return
        try:
            self.client.do(Shutdown(), timeout_s)
        except (GatewayError, StepError) as error:
            log.warning("the gateway does not shut down by itself: %s", error)
        deadline = time.monotonic() + timeout_s
        while self._living() is not None and time.monotonic() < deadline:
            if self._child is not None:
                self._child.poll()
            time.sleep(0.05)
        if (pid := self._living()) is not None:
            _kill(pid)
        if self._child is not None:
            self._child.wait(timeout=5)

    def _start(self, now: float) -> None:
        self._next_start = now + min(_RESTART_MOST_S, _RESTART_FIRST_S * 2.0**self._starts)
        self._starts += 1
        command = [
            sys.executable,
            "-m",
            "covey_agent.gateway",
            "--run-dir",
            str(self._folder),
            "--port",
            str(self._port),
            *self._options,
        ]
        try:
            with self._open_log() as output:
                self._child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
                )
            self._pid = self._child.pid
            self._silent_since = now
        except OSError as error:
            log.error("the gateway cannot be started: %s", error)
            return
        log.info("started the gateway (pid %d)", self._pid)

    def _open_log(self) -> IO[bytes]:
        try:
            return self._log_file.open("ab")
        except OSError as error:
            log.warning("the gateway's log cannot be written: %s", error)
            return Path(os.devnull).open("ab")

    def _living(self) -> int | None:
        """The pid of our gateway, if it runs: asked of the kernel, since a pid in a file may be anybody's by now."""
        pid = self._pid
        if pid is None:
            try:
                pid = int((self._folder / "gateway.pid").read_text(encoding="ascii")[:20])
            except (OSError, ValueError):
                return None
        try:
            process = psutil.Process(pid)
            ours = str(self._folder) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            ours = False
        if not ours:
            self._pid = None
            return None
        self._pid = pid
        return pid


def _kill(pid: int) -> None:
    """The gateway leads a session; its runners are in its process group and hold memory for nobody."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    except PermissionError as error:
        log.error("the gateway (pid %d) cannot be ended: %s", pid, error)
