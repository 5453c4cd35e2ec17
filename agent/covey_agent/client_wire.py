"""How `client` talks to the gateway: HTTP/1.1 over one connection, as little of it as that takes.

An application asks the same again and again: the same model, the same shapes. All of such a request but its tensors is made once, and all of
an answer but its tensors is read once: the next one is compared with it, byte for byte, and read as ever where it differs.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy.typing as npt

Array = npt.NDArray[Any]
Address = str | tuple[str, int]
Piece = bytes | memoryview  # contiguous, of any shape and type of elements

_MAX_HEAD = 64 * 1024
_MAX_ANSWER = 1 << 30
_RECEIVE_BYTES = 64 * 1024
_SEND_BYTES = 1 << 20  # at most as much as the system allows


class NobodyAnswers(Exception):  # noqa: N818  # what it is called where it is told
    """There is no gateway at the address."""


class Answer(NamedTuple):
    """`head`: the bytes up to the body; names in `headers` are in lower case."""

    status: int
    headers: dict[bytes, bytes]
    body: memoryview
    head: bytes


@dataclass(frozen=True)
class Expected:
    """An answer as it came before: `start`, all of it before its tensors, and how many bytes they have."""

    start: bytes
    size: int


class Connection:
    """Connects when it is first used, and again after the other end was away. `timeout_s`: for each step to go on."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._buffer = bytearray(_RECEIVE_BYTES)
        self._view = memoryview(self._buffer)

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ask(self, pieces: Sequence[Piece], expected: Expected | None = None) -> Answer | bytearray:
        """One request and its answer; the tensors alone, if all else is as expected. A connection that the other end has closed meanwhile is
        opened again, once. Raises `NobodyAnswers`, `TimeoutError` and `OSError`."""
        for last in (self._socket is None, True):
            connection = self._socket or self._connect()
            try:
                _send(connection, pieces)
                return self._receive(connection, expected)
            except BlockingIOError as error:
                self.close()
                raise TimeoutError from error
            except OSError:
                self.close()
                if last:
                    raise
        raise AssertionError("unreachable")

    def _connect(self) -> socket.socket:
        unix = isinstance(self._address, str)
        connection = socket.socket(socket.AF_UNIX if unix else socket.AF_INET, socket.SOCK_STREAM)
        _limit(connection, self._timeout_s)
        try:
            if unix:  # a large request in few pieces; over TCP the kernel finds out by itself
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
            else:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.connect(self._address)
        except OSError as error:
            connection.close()
            raise NobodyAnswers(f"no gateway answers at {self._address}: {error}") from error
        self._socket = connection
        return connection

    def _receive(self, connection: socket.socket, expected: Expected | None) -> Answer | bytearray:
        """The other end says how long each answer is."""
        have = self._some(connection, self._view)
        if expected is not None and have >= len(expected.start) and self._buffer.startswith(expected.start):
            return self._body(connection, len(expected.start), have, expected.size)
        while (end := self._buffer.find(b"\r\n\r\n", 0, have)) < 0:
            if have == _MAX_HEAD:
                raise ConnectionAbortedError("the answer's head is too long")
            have += self._some(connection, self._view[have:])
        head = bytes(self._view[: end + 4])
        first, *lines = head[:-4].split(b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        length = int(headers.get(b"content-length", b"0"))
        if length > _MAX_ANSWER:
            raise ConnectionAbortedError(f"an answer of {length} bytes")
        body = self._body(connection, len(head), have, length)
        return Answer(int(first.split(b" ", 2)[1]), headers, memoryview(body), head)

    def _body(self, connection: socket.socket, begin: int, have: int, size: int) -> bytearray:
        """So many bytes from `begin` on, of which those up to `have` have come."""
        if have == begin + size:
            return self._buffer[begin:have]
        body = bytearray(size)
        done = min(have - begin, size)
        body[:done] = self._view[begin : begin + done]
        view = memoryview(body)
        while done < size:
            done += self._some(connection, view[done:])
        return body

    def _some(self, connection: socket.socket, into: memoryview) -> int:
        count = connection.recv_into(into)
        if not count:
            raise ConnectionResetError("the connection ended before the answer did")
        return count


def _limit(connection: socket.socket, timeout_s: float) -> None:
    """Have the kernel see to the time-out (EAGAIN), which spares a system call each time that Python would need to. `struct timeval` has
    two numbers of a size that depends on the machine."""
    seconds, microseconds = divmod(max(int(timeout_s * 1e6), 1), 1_000_000)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        size = len(connection.getsockopt(socket.SOL_SOCKET, option, 16)) // 2
        value = b"".join(number.to_bytes(size, sys.byteorder) for number in (seconds, microseconds))
        connection.setsockopt(socket.SOL_SOCKET, option, value)


def _send(connection: socket.socket, pieces: Sequence[Piece]) -> None:
    """All of them in as few calls as the socket takes. Raises `OSError`."""
    sent = connection.sendmsg(pieces)
    for piece in pieces:
        size = memoryview(piece).nbytes
        if sent < size:
            connection.sendall(memoryview(piece).tobytes()[sent:])
        sent = max(sent - size, 0)
