"""Devices that fetch a build as the agent does, by its own code; only their disk is memory, shared by all of them.

Slow ones read from their socket no faster than they are told, flaky ones lose their connection again and again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from benchmarks.delivery.builds import Made, name_of
from covey_agent.fetch import Fetcher, FetchLimits
from covey_agent.partial import Partial
from covey_agent.store import Store
from covey_contract import topics
from covey_contract.blocks import decode_block
from covey_contract.manifest import BLOCK_BYTES
from covey_contract.messages import Broadcast
from covey_contract.wire import decode, encode
from covey_hil.simulator.mqtt import MqttError, Session, Will

_TICK_S = 0.05
_READ_S = 0.1  # a slow device reads so often
_HEADER = 16


class SharedPartial(Partial):
    """A file of which only the bitmap is this device's own: a block is compared with the original instead of being hashed and kept."""

    def __init__(self, path: Path, size: int, content: bytes) -> None:
        super().__init__(path, size, BLOCK_BYTES, b"", 1 << 30)
        self._content = memoryview(content)

    def open(self) -> None:
        """There is nothing to open."""

    def fits(self, index: int, data: bytes) -> bool:
        return self._content[index * BLOCK_BYTES : index * BLOCK_BYTES + self.length(index)] == data

    def put(self, index: int, data: bytes) -> None:
        del data
        self._have.add(index)

    def matches(self, sha256: str) -> bool:
        del sha256
        return True

    def read_all(self) -> bytes:
        return bytes(self._content)


@dataclass
class MemoryFetcher(Fetcher):
    """The agent's fetcher; its files are `SharedPartial`."""

    contents: tuple[bytes, bytes] = (b"", b"")

    def _part(self, file: int, expected: bytes) -> Partial:
        del expected
        return SharedPartial(self.folder / str(file), self._entries[file].size, self.contents[file])


class _NoStore:
    """Nothing is here yet."""

    def has_blob(self, _entry: object) -> bool:
        return False

    def alike(self, _sizes: object) -> list[Path]:
        return []

    def missing(self, _manifest: object) -> list[object]:
        return []


@dataclass(frozen=True)
class Habit:
    """How a device differs from a good one."""

    bytes_per_s: float | None = None  # that it reads
    drops_every_s: float | None = None


@dataclass
class FetchingDevice:
    """`run` until all is here. `seconds` counts from the start that all devices share."""

    number: int
    made: Made
    port: int
    folder: Path
    habit: Habit
    listens: bool  # an order has said that there is a broadcast
    asks: bool = True  # False: everything is pushed
    received: int = 0  # bytes of blocks, useful or not
    seconds: float | None = None
    _session: Session | None = None
    _fetcher: MemoryFetcher = field(init=False)

    def __post_init__(self) -> None:
        self._fetcher = MemoryFetcher(
            self.made.digest,
            self.made.manifest,
            self.folder / name_of(self.number),
            cast("Store", _NoStore()),
            FetchLimits(),
            contents=self.made.contents,
        )

    async def connect(self) -> None:
        name = name_of(self.number)
        will = Will(topics.up(name, topics.Up.STATUS), b"{}")
        session = Session(name, will, 60, self._take, lambda: None)
        await session.open("127.0.0.1", self.port, topics.down_filter(name))
        await session.subscribe(topics.broadcast_filter(self.made.digest))
        self._session = session

    async def run(self, began: float) -> None:
        loop = asyncio.get_running_loop()
        self._fetcher.open()
        if self.listens:
            self._fetcher.expect_broadcast(loop.time())
        helpers = [loop.create_task(self._read_slowly())] if self.habit.bytes_per_s else []
        dropped = loop.time()
        try:
            while not self._fetcher.done:
                session = self._session
                if self.habit.drops_every_s is not None and loop.time() - dropped > self.habit.drops_every_s:
                    if session is not None:
                        session.abort()
                    dropped = loop.time()
                if session is None or session.closed:
                    self._fetcher.tick(loop.time(), connected=False)
                    with contextlib.suppress(MqttError, OSError, TimeoutError):
                        await self.connect()
                    continue
                self._ask()
                await asyncio.sleep(_TICK_S)
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
        self.seconds = time.monotonic() - began

    def close(self) -> None:
        if self._session is not None:
            self._session.resume()
            self._session.disconnect()

    def _ask(self) -> None:
        if not self.asks or self._session is None:
            return
        for request in self._fetcher.tick(asyncio.get_running_loop().time(), connected=True):
            self._session.publish(topics.up(name_of(self.number), topics.Up.BLOCK_REQUEST), encode(request), qos=0)

    def _take(self, topic: str, payload: bytes) -> None:
        now = asyncio.get_running_loop().time()
        match topics.parse_down(topic):
            case topics.Down.BLOCK:
                self.received += len(payload) - _HEADER
                broadcast = not self.asks or topics.is_broadcast(topic)
                self._fetcher.block(decode_block(payload), now, broadcast=broadcast)
                if self._fetcher.hungry:
                    self._ask()
            case topics.Down.BROADCAST:
                self._fetcher.note(decode(Broadcast, payload), now)
            case _:
                pass

    async def _read_slowly(self) -> None:
        """Lets the socket be read for as long as its share of the time."""
        assert self.habit.bytes_per_s is not None  # noqa: S101 - for the type checker
        owed, last = 0.0, self.received
        while True:
            await asyncio.sleep(_READ_S)
            owed = max(owed - self.habit.bytes_per_s * _READ_S, 0.0) + self.received - last
            last = self.received
            if self._session is not None:
                if owed > 0:
                    self._session.pause()
                else:
                    self._session.resume()
