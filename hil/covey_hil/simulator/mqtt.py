"""As much of MQTT 3.1.1 as a device needs, on asyncio, light enough for ten thousand sessions in one process.

A clean session; QoS 0 and 1 both ways; a will. What is not acknowledged when a session ends is its user's to say again, as it is for
agents. (OASIS, MQTT Version 3.1.1, sections 2 and 3.)
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

CONNECT, CONNACK, PUBLISH, PUBACK = 0x10, 0x20, 0x30, 0x40
SUBSCRIBE, SUBACK, PINGREQ, PINGRESP, DISCONNECT = 0x82, 0x90, 0xC0, 0xD0, 0xE0
_WILL_QOS1, _CLEAN, _USER = 0x0C, 0x02, 0x80
_REFUSED = 0x80
MAX_PACKET = 1 << 20
MAX_IDS = 65_535


class MqttError(Exception):
    """The broker refuses the session, or says what MQTT does not allow."""


@dataclass(frozen=True)
class Will:
    """What the broker says in the device's name when its session ends without a word."""

    topic: str
    payload: bytes


class Session(asyncio.Protocol):
    """One connection. `on_message(topic, payload)` and `on_closed()` are called from the event loop."""

    def __init__(
        self,
        client_id: str,
        will: Will,
        keepalive_s: int,
        on_message: Callable[[str, bytes], None],
        on_closed: Callable[[], None],
    ) -> None:
        self._client_id, self._will, self._keepalive_s = client_id, will, keepalive_s
        self._on_message, self._on_closed = on_message, on_closed
        self._transport: asyncio.Transport | None = None
        self._reader = PacketReader()
        self._last_id = 0
        self._connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._subscribed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closed = False

    async def open(self, host: str, port: int, topic_filter: str, timeout_s: float = 30.0) -> None:
        """Connect and subscribe. Raises `MqttError`, `OSError` or `TimeoutError`; then it is closed."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                await loop.create_connection(lambda: self, host, port)
                await self._connected
                self._write(SUBSCRIBE, struct.pack("!H", self._next_id()) + _text(topic_filter) + b"\x01")
                await self._subscribed
        except BaseException:
            self.abort()
            raise

    async def subscribe(self, topic_filter: str, timeout_s: float = 30.0) -> None:
        """One more filter, at QoS 1. Raises `MqttError` or `TimeoutError`."""
        self._subscribed = asyncio.get_running_loop().create_future()
        self._write(SUBSCRIBE, struct.pack("!H", self._next_id()) + _text(topic_filter) + b"\x01")
        async with asyncio.timeout(timeout_s):
            await self._subscribed

    def pause(self) -> None:
        """Read nothing until `resume`: the broker is held back, as by a slow line."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def publish(self, topic: str, payload: bytes, qos: int = 1) -> bool:
        """Whether the session took it."""
        if self.closed or self._transport is None:
            return False
        number = struct.pack("!H", self._next_id()) if qos else b""
        self._write(PUBLISH | qos << 1, _text(topic) + number + payload)
        return True

    def ping(self) -> None:
        self._write(PINGREQ, b"")

    def disconnect(self) -> None:
        """End it in peace: the broker forgets the will."""
        self._write(DISCONNECT, b"")
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        self.closed = True

    # --- asyncio.Protocol -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - for the type checker; it is a stream
        self._transport = transport
        flags = _USER | _CLEAN | _WILL_QOS1
        head = _text("MQTT") + struct.pack("!BBH", 4, flags, self._keepalive_s)
        will = _text(self._will.topic) + struct.pack("!H", len(self._will.payload)) + self._will.payload
        self._write(CONNECT, head + _text(self._client_id) + will + _text(self._client_id))

    def data_received(self, data: bytes) -> None:
        try:
            for kind, body in self._reader.feed(data):
                self._take(kind, body)
        except (MqttError, struct.error, UnicodeDecodeError, IndexError) as error:
            self._fail(MqttError(str(error)))
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._fail(MqttError(f"the connection is lost: {exc or 'closed by the broker'}"))
        self._on_closed()

    def _take(self, kind: int, body: bytes) -> None:
        match kind & 0xF0:
            case 0x20:  # CONNACK
                if body[1]:
                    raise MqttError(f"the broker refuses the session with code {body[1]}")
                _done(self._connected)
            case 0x90:  # SUBACK
                if body[2] == _REFUSED:
                    raise MqttError("the broker refuses the subscription")
                _done(self._subscribed)
            case 0x30:  # PUBLISH
                self._take_message(kind, body)
            case _:
                pass  # PUBACK and PINGRESP: what counts is the server's word, not the broker's

    def _take_message(self, kind: int, body: bytes) -> None:
        length = struct.unpack_from("!H", body)[0]
        topic, at = body[2 : 2 + length].decode(), 2 + length
        if kind & 0x06:
            self._write(PUBACK, body[at : at + 2])
            at += 2
        self._on_message(topic, body[at:])

    def _fail(self, error: MqttError) -> None:
        for future in (self._connected, self._subscribed):
            if not future.done():
                future.set_exception(error)
                future.exception()  # whoever opens the session hears of it; nobody else has to

    def _next_id(self) -> int:
        self._last_id = self._last_id % MAX_IDS + 1
        return self._last_id

    def _write(self, kind: int, body: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(packet(kind, body))


class PacketReader:
    """Cuts a stream into packets.

    >>> list(PacketReader().feed(packet(PUBACK, b"..") + packet(PINGRESP, b"")))
    [(64, b'..'), (208, b'')]
    """

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The packets that are whole now: first byte and body. Raises `MqttError` for a length beyond `MAX_PACKET`."""
        self._held += data
        while (found := self._length()) is not None:
            start, length = found
            if len(self._held) < start + length:
                return
            kind, body = self._held[0], self._held[start : start + length]
            self._held = self._held[start + length :]
            yield kind, body

    def _length(self) -> tuple[int, int] | None:
        """Where the body starts and how long it is, if the header is whole."""
        length = 0
        for at in range(1, 5):
            if at >= len(self._held):
                return None
            length |= (self._held[at] & 0x7F) << 7 * (at - 1)
            if not self._held[at] & 0x80:
                if length > MAX_PACKET:
                    raise MqttError(f"a packet of {length} bytes; at most {MAX_PACKET}")
                return at + 1, length
        raise MqttError("a packet's length has more than four bytes")


def packet(kind: int, body: bytes) -> bytes:
    """A whole packet; its length in seven bits a byte, the least first."""
    length, rest = b"", len(body)
    while True:
        rest, byte = rest >> 7, rest & 0x7F
        length += bytes([byte | 0x80 if rest else byte])
        if not rest:
            return bytes([kind]) + length + body


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("!H", len(data)) + data


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
