"""Each window of measurements for whoever listens on this device too: one datagram, to a Unix socket in the run folder.

Nobody need listen, and nobody who does can hold the agent up: what is not taken at once is not told. Whoever keeps it is another process
(`covey-agent otlp`), so that this costs the agent a system call.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from covey_agent.errors import AgentError, AlreadyRunningError
from covey_contract.messages import Telemetry
from covey_contract.wire import MAX_MESSAGE_BYTES, encode

log = logging.getLogger(__name__)

SOCKET = "telemetry.sock"


class Tap:
    """`path`: where somebody may listen."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lost = False

    def tell(self, record: Telemetry) -> None:
        """Never waits, never raises."""
        if not self._path.exists():
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as teller:
                teller.sendto(encode(record), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, str(self._path))
            self._lost = False
        except OSError as error:
            if not self._lost and not isinstance(error, (ConnectionRefusedError, FileNotFoundError)):
                log.warning("a window is not told at %s: %s", self._path, error.strerror)
            self._lost = True


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A socket that is told, for this user's agent alone. Raises `AgentError`."""
    _make_way(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        before = os.umask(0o077)
        try:
            sock.bind(str(path))
        except OSError as error:
            raise AgentError(f"cannot listen on {path}: {error.strerror}") from error
        finally:
            os.umask(before)
        try:
            yield sock
        finally:
            path.unlink(missing_ok=True)


def received(sock: socket.socket, timeout_s: float) -> bytes | None:
    """One datagram; None if there is none in time, or it is longer than any record."""
    sock.settimeout(max(timeout_s, 0.001))
    try:
        data = sock.recv(MAX_MESSAGE_BYTES + 1)
    except TimeoutError:
        return None
    return data if len(data) <= MAX_MESSAGE_BYTES else None


def _make_way(path: Path) -> None:
    """Remove the socket that a dead listener has left. Raises `AgentError` if one lives."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise AgentError(f"{path} is something else than a socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            probe.connect(str(path))
    except FileNotFoundError:
        return
    except OSError:
        path.unlink(missing_ok=True)
        return
    raise AlreadyRunningError(f"somebody listens on {path} already")
