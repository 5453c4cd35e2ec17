"""Server-sent events: each live region is rendered once per language when it has changed, and the same bytes go to
all who look at it.

Invariants: a region is rendered at most once a second, and not at all while nobody looks; a viewer who is slow gets the newest
and misses what was in between; a viewer is let go after a while and comes back by itself, so that a login that has ended is
noticed. Everything here runs on the event loop; rendering runs in the thread pool.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from starlette.concurrency import run_in_threadpool

from covey_server.console import i18n, live
from covey_server.errors import ServerError, TooMany
from covey_server.services import Services

log = logging.getLogger(__name__)

# How often a region is rendered at most, in seconds; and at least, since figures of "the last minutes" age without a hint.
AT_MOST_EVERY_S = 1.0
AT_LEAST_EVERY_S = 10.0
# How long a viewer is served before it has to come again.
SERVED_S = 600.0
MAX_VIEWERS = 500
_ALIVE_EVERY_S = 15.0


class Viewer:
    """One browser at one region: the newest event that it has not been sent."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._newest: bytes | None = None

    def offer(self, event: bytes) -> None:
        self._newest = event
        self._event.set()

    async def next(self, patience_s: float) -> bytes | None:
        """None if there was nothing new for `patience_s` seconds."""
        try:
            async with asyncio.timeout(patience_s):
                await self._event.wait()
        except TimeoutError:
            return None
        self._event.clear()
        return self._newest


@dataclass
class Channel:
    """One region with these parameters in one language, and who looks at it."""

    region: str
    parameters: dict[str, str]
    language: str
    viewers: set[Viewer] = field(default_factory=set)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    newest: bytes | None = None
    task: asyncio.Task[None] | None = None


class Hub:
    """All channels of one server. `close` ends all streams."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._channels: dict[tuple[str, str], Channel] = {}
        self._pump: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()

    @property
    def viewers(self) -> int:
        return sum(len(channel.viewers) for channel in self._channels.values())

    def close(self) -> None:
        """Let every viewer go; called on the event loop."""
        self._closed.set()
        for channel in self._channels.values():
            for viewer in channel.viewers:
                viewer.offer(b"")

    def check_room(self) -> None:
        """Raises `TooMany` if no further viewer can be served."""
        if self.viewers >= MAX_VIEWERS:
            raise TooMany(f"{MAX_VIEWERS} pages are live already")

    async def watch(self, region: str, parameters: dict[str, str], language: str) -> AsyncIterator[bytes]:
        """The region's events, the first one as soon as it is rendered."""
        channel, viewer = self._enter(region, parameters, language)
        until = asyncio.get_running_loop().time() + SERVED_S
        try:
            yield b"retry: 1000\n\n"
            while not self._closed.is_set() and asyncio.get_running_loop().time() < until:
                event = await viewer.next(_ALIVE_EVERY_S)
                # A comment keeps proxies from cutting an idle stream, and shows us a viewer that has gone.
                yield b": alive\n\n" if event is None else event
        finally:
            self._leave(channel, viewer)

    def _enter(self, region: str, parameters: dict[str, str], language: str) -> tuple[Channel, Viewer]:
        key = (language, live.address(region, parameters))
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = Channel(region, parameters, language)
            channel.changed.set()
            channel.task = asyncio.create_task(self._keep_fresh(channel))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._listen())
        viewer = Viewer()
        if channel.newest is not None:
            viewer.offer(channel.newest)
        channel.viewers.add(viewer)
        return channel, viewer

    def _leave(self, channel: Channel, viewer: Viewer) -> None:
        channel.viewers.discard(viewer)
        if channel.viewers:
            return
        self._channels.pop((channel.language, live.address(channel.region, channel.parameters)), None)
        if channel.task is not None:
            channel.task.cancel()
        if not self._channels and self._pump is not None:
            self._pump.cancel()
            self._pump = None

    async def _listen(self) -> None:
        """Hints of the bus to the channels that they concern."""
        with self._services.bus.subscribe() as subscription:
            while True:
                hint = await subscription.get_async(_ALIVE_EVERY_S)
                if hint is None:
                    continue
                for channel in self._channels.values():
                    if live.find(channel.region).cares(*hint, channel.parameters):
                        channel.changed.set()

    async def _keep_fresh(self, channel: Channel) -> None:
        while True:
            try:
                async with asyncio.timeout(AT_LEAST_EVERY_S):
                    await channel.changed.wait()
            except TimeoutError:
                pass
            channel.changed.clear()
            try:
                event = await run_in_threadpool(self._render, channel)
            except ServerError as error:
                event = encode("gone", error.detail)
            except Exception:
                # One region that cannot be shown must not end the stream of those that can; it is tried again.
                log.exception("the live region %s could not be rendered", channel.region)
                event = None
            if event is not None and event != channel.newest:
                channel.newest = event
                for viewer in channel.viewers:
                    viewer.offer(event)
            await asyncio.sleep(AT_MOST_EVERY_S)

    def _render(self, channel: Channel) -> bytes:
        with i18n.speaking(channel.language), self._services.database.reading() as session:
            shown = live.render(session, channel.region, channel.parameters, self._services.clock())
        return encode("live", shown)


def encode(event: str, text: str) -> bytes:
    """An event as the browser's EventSource reads it; line breaks within the data are kept.

    >>> encode("live", "<p>\\n</p>")
    b'event: live\\ndata: <p>\\ndata: </p>\\n\\n'
    """
    lines = "".join(f"data: {line}\n" for line in text.splitlines() or [""])
    return f"event: {event}\n{lines}\n".encode()
