"""Asking the gateway over its Unix socket, with a connection for each thread."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

MAX_ANSWER_BYTES = 1 << 30
_TIMEOUT_S = 60.0  # longer than the gateway lets any request wait


class Unreachable(Exception):  # noqa: N818  # what it is called where it is told
    """The gateway does not answer."""


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("covey", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Gateway:
    """`path`: of the inference socket."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()

    def ask(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """One request. One that finds its connection closed, as the gateway closes idle ones, is sent again, once. Raises `Unreachable`."""
        connection = getattr(self._local, "connection", None)
        for fresh in (connection is None, True):
            if connection is None:
                connection = self._local.connection = _UnixConnection(self._path)
            try:
                connection.request(method, path, body=body, headers=dict(headers or {}))
                response = connection.getresponse()
                content = response.read(MAX_ANSWER_BYTES)
                return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, content)
            except (http.client.HTTPException, OSError) as error:
                connection.close()
                connection = self._local.connection = None
                if fresh or isinstance(error, TimeoutError):
                    raise Unreachable(f"the gateway does not answer: {error}") from error
        raise AssertionError("unreachable")
