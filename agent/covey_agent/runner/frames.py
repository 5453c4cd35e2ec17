"""The runner's end of the socket: frames in, one after the other, without a copy of what is in them."""

from __future__ import annotations

import socket

from covey_agent.runner.protocol import PREFIX, ToRunner, decode_header, decode_prefix, to_runner

# Read at once: whole requests whose inputs are small or lie in shared memory.
RECEIVE_BYTES = 16 * 1024


class GatewayGone(Exception):  # noqa: N818  # not an error: the ordinary end of a runner
    """The gateway has closed the socket."""


class Frames:
    """`sock` must be blocking. Nothing is read before it is asked for, so that a socket that becomes readable says something new."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._usual = memoryview(bytearray(RECEIVE_BYTES))
        self._buffer = self._usual
        self._have = 0  # bytes of it that have come
        self._given = 0  # bytes of it that are the frame that was given last

    def next(self) -> tuple[ToRunner, memoryview]:
        """The next frame's message, and its payload until the frame after it is asked for; raises `FrameError` and `GatewayGone`."""
        self._forget()
        if self._have < PREFIX.size:
            self._fill(PREFIX.size)
        header, payload = decode_prefix(self._buffer[: PREFIX.size])
        begin, end = PREFIX.size + header, PREFIX.size + header + payload
        if self._have < end:
            self._fill(end)
        self._given = end
        return decode_header(to_runner, self._buffer[PREFIX.size : begin]), self._buffer[begin:end]

    def _forget(self) -> None:
        """What was given last is not needed any longer; what came after it, if anything did, moves to the front."""
        left = self._have - self._given
        if left:
            self._usual = self._grown(RECEIVE_BYTES, self._given)
        self._buffer, self._have, self._given = self._usual, left, 0

    def _fill(self, size: int) -> None:
        if size > len(self._buffer):
            self._buffer = self._grown(size, 0)
        while self._have < size:
            try:
                count = self._socket.recv_into(self._buffer[self._have :])
            except ConnectionResetError as error:
                raise GatewayGone from error
            if not count:
                raise GatewayGone
            self._have += count

    def _grown(self, size: int, begin: int) -> memoryview:
        """What has come from `begin` on, at the front of a buffer of at least that size."""
        kept = self._buffer[begin : self._have]
        grown = memoryview(bytearray(max(size, len(kept))))
        grown[: len(kept)] = kept
        return grown
