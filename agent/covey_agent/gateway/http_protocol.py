"""HTTP/1.1 on the loopback: one connection, its requests answered in order, every wait and every size bounded.

Parsing is httptools'; what a request means is the handler's. A connection keeps what its caller sends ahead (pipelining) and
reads no further while it answers. A request whose head has been parsed before (`known_heads`) does not go through the parser again, and
is answered without a task's help where the handler can (`Quick`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httptools

from covey_agent.gateway.buffers import Buffers
from covey_agent.gateway.http_messages import HttpRequest, HttpResponse
from covey_agent.gateway.known_heads import KnownHead, KnownHeads
from covey_agent.gateway.settings import Limits

log = logging.getLogger(__name__)

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# How often connections are looked at for those that keep the gateway waiting, in seconds.
SWEEP_S = 1.0
# A caller that was refused in the middle of its request may go on sending for this long: a connection that is closed on bytes nobody
# has read is reset, and the answer with it.
LINGER_S = 2.0

Handler = Callable[[HttpRequest], Awaitable[HttpResponse]]
Refuse = Callable[[int, str], HttpResponse]
Answered = Callable[[bytes], None]
# Takes the request (its head, its body until it is answered, and whom to give the encoded answer to), or says that it does not.
Quick = Callable[[KnownHead, memoryview, Answered], bool]


@dataclass
class Arriving:
    """A request with a known head, of which a part has come. `buffer` has room for all of it."""

    head: KnownHead
    buffer: bytearray
    have: int


@dataclass(frozen=True)
class Lent:
    """Where a request lies until it is answered, and how long its body is."""

    buffer: bytearray
    size: int


class Connections:
    """All open connections of the gateway, over TCP and Unix socket, and the bytes they have buffered together."""

    def __init__(
        self,
        handler: Handler,
        refuse: Refuse,
        limits: Limits,
        clock: Callable[[], float],
        quick: Quick = lambda _head, _body, _answered: False,
    ) -> None:
        self.handler = handler
        self.quick = quick
        self.refuse = refuse
        self.limits = limits
        self.clock = clock
        self.buffered = 0
        self.open: set[HttpConnection] = set()
        self.buffers = Buffers()
        self.heads = KnownHeads()

    def accept(self) -> HttpConnection:
        return HttpConnection(self)

    async def sweep(self) -> None:
        """For ever: end connections that keep the gateway waiting."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now = self.clock()
            for connection in [connection for connection in self.open if connection.overdue(now)]:
                connection.abort()

    async def drain(self, timeout_s: float) -> None:
        """Let the requests that are being answered finish, then end every connection."""
        tasks = [task for connection in list(self.open) if (task := connection.finish()) is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
        for connection in list(self.open):
            connection.abort()


class HttpConnection(asyncio.BufferedProtocol):
    def __init__(self, connections: Connections) -> None:
        self._all = connections
        self._limits = connections.limits
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._request = HttpRequest()
        self._in_header = False
        self._header_bytes = 0
        self._unparsed = 0  # bytes of whole pieces that ended within the header
        self._chunks: list[bytes] = []
        self._body_bytes = 0  # of the request that is arriving
        self._held = 0  # bytes of bodies that are not answered yet
        self._ready: deque[HttpRequest] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._deadline = 0.0
        self._broken = False  # nothing more is read
        self._paused = False
        self._between = True  # no request has begun that is not all there
        self._first = b""  # the head of the request that is arriving, if it may become a known one
        self._fed = 0  # bytes of that request, and of what came with it
        self._arriving: Arriving | None = None
        self._lent: Lent | None = None  # where the request lies that is being answered quickly
        self.answering = False

    # --- the transport's calls ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # a stream server makes no other
        self._transport = transport
        if len(self._all.open) >= self._limits.connections:
            transport.write(self._all.refuse(503, "too many connections").encode(keep_alive=False))
            transport.close()
            return
        self._all.open.add(self)
        self._deadline = self._all.clock() + self._limits.idle_s
        self._task = asyncio.get_running_loop().create_task(self._serve())

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # why it went away changes nothing
        self._all.open.discard(self)
        self._broken = True
        self._release(self._held)
        for waiting in (self._wake, self._writable):
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # as much as there is
        if (arriving := self._arriving) is not None:
            return memoryview(arriving.buffer)[arriving.have : arriving.head.whole]
        return self._all.buffers.view

    def buffer_updated(self, nbytes: int) -> None:
        """The loop reads and tells in one go, so that one buffer is enough for all connections."""
        if self._broken:
            return
        if self._arriving is not None:
            self._go_on(self._arriving, nbytes)
            return
        if self.answering and not self._paused and self._transport is not None:
            self._transport.pause_reading()  # the caller is ahead: no further
            self._paused = True
        buffers = self._all.buffers
        if self._between:
            self._first, known = self._all.heads.find(buffers.current, nbytes)
            if known is not None and nbytes <= known.whole:
                self._begin_known(known, nbytes)
                return
            self._fed = 0
        self._fed += nbytes
        self._parse(buffers.view[:nbytes])

    def _parse(self, data: memoryview) -> None:
        try:
            self._parser.feed_data(data)
            if self._in_header:  # the parser keeps an unfinished header line to itself
                self._unparsed += len(data)
                self._count_header(0)
        except httptools.HttpParserUpgrade:
            self._refuse(400, "protocol upgrades are not supported")
        except httptools.HttpParserError as error:
            if not self._broken:  # our own refusals also end the parser
                self._refuse(400, f"not a valid HTTP request: {error}")

    def eof_received(self) -> bool:
        # A caller that has said all may still want its answer.
        self._broken = True
        self._notify()
        return self.answering or bool(self._ready)

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # --- the parser's calls -------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._request = HttpRequest()
        self._between = False
        self._in_header = True
        self._header_bytes = self._unparsed = 0
        self._chunks = []
        if not self.answering:
            self._deadline = self._all.clock() + self._limits.read_s

    def on_url(self, url: bytes) -> None:
        self._count_header(len(url))
        self._request.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_header(len(name) + len(value))
        self._request.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._in_header = False
        request = self._request
        request.method = self._parser.get_method().decode("latin-1")
        request.keep_alive = self._parser.should_keep_alive()
        length = request.headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limits.body_bytes:
            self._too_large()
        elif request.headers.get(b"expect", b"").lower() == b"100-continue" and self._transport is not None:
            self._transport.write(CONTINUE)

    def on_body(self, body: bytes) -> None:
        if self._broken:
            return
        self._body_bytes += len(body)
        self._held += len(body)
        self._all.buffered += len(body)
        self._chunks.append(body)
        if self._body_bytes > self._limits.body_bytes:
            self._too_large()
        elif self._all.buffered > self._limits.buffered_bytes:
            self._full()

    def on_message_complete(self) -> None:
        if self._broken:
            return
        request = self._request
        request.body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks = []
        self._body_bytes = 0
        self._between = True
        self._learn(request)
        self._ready.append(request)
        self._notify()

    def _learn(self, request: HttpRequest) -> None:
        """Keep the head, if these were its bytes, all of them: what came since it began is it and its body."""
        head, self._first = self._first, b""  # what comes with this request is not looked at
        plain = request.headers.keys().isdisjoint((b"transfer-encoding", b"expect"))
        whole = self._fed == len(head) + len(request.body)
        if head and plain and whole and request.method == "POST" and request.keep_alive:
            self._all.heads.learn(KnownHead(head, request.url, request.headers, len(request.body)))

    # --- requests whose heads are known -------------------------------------------------------------------------------

    def _begin_known(self, head: KnownHead, nbytes: int) -> None:
        self._body_bytes = head.size
        self._held += head.size
        self._all.buffered += head.size
        if self._all.buffered > self._limits.buffered_bytes:
            self._full()
        elif nbytes == head.whole:
            self._arrived(head, self._all.buffers.take())
        else:
            if not self.answering:
                self._deadline = self._all.clock() + self._limits.read_s
            self._arriving = Arriving(head, self._all.buffers.take_part(nbytes, head.whole), nbytes)

    def _go_on(self, arriving: Arriving, nbytes: int) -> None:
        arriving.have += nbytes
        if arriving.have == arriving.head.whole:
            self._arriving = None
            self._arrived(arriving.head, arriving.buffer)

    def _arrived(self, head: KnownHead, buffer: bytearray) -> None:
        self._body_bytes = 0
        body = memoryview(buffer)[len(head.raw) : head.whole]
        if not self.answering and not self._ready:
            self.answering, self._lent = True, Lent(buffer, head.size)
            if self._all.quick(head, body, self._answered):
                return
            self.answering, self._lent = False, None
        self._ready.append(HttpRequest("POST", head.url, head.headers, bytes(body)))
        self._all.buffers.give_back(buffer)
        self._notify()

    def _answered(self, answer: bytes) -> None:
        """What `Quick` took is answered; the connection may have ended meanwhile."""
        lent, self._lent = self._lent, None
        transport = self._transport
        if lent is None or transport is None:
            return
        self._all.buffers.give_back(lent.buffer)
        self._release(lent.size)
        if not transport.is_closing():
            self._deadline = self._all.clock() + self._limits.write_s
            transport.write(answer)
        if self._writable is None:
            self._rest()
        else:
            self._writable.add_done_callback(self._rest)

    def _rest(self, *_: object) -> None:
        """Until the next request, which may be there already."""
        self.answering = False
        self._deadline = self._all.clock() + self._limits.idle_s
        if self._transport is not None and not self._transport.is_closing():
            self._resume(self._transport)
        if self._ready or self._broken:
            self._notify()

    # --- limits -------------------------------------------------------------------------------------------------------

    def _count_header(self, count: int) -> None:
        self._header_bytes += count
        if max(self._header_bytes, self._unparsed) > self._limits.header_bytes and not self._broken:
            self._refuse(431, f"the request's header is longer than {self._limits.header_bytes} bytes")

    def _too_large(self) -> None:
        self._refuse(413, f"the body is longer than {self._limits.body_bytes} bytes")

    def _full(self) -> None:
        self._refuse(503, "too many bytes wait to be answered; try again later")

    def _refuse(self, status: int, detail: str) -> None:
        """Answer so in its turn, and end the connection: where the next request would begin is not known."""
        self._broken = True
        self._release(self._body_bytes)
        self._body_bytes = 0
        self._chunks.clear()
        self._ready.append(HttpRequest(refused=self._all.refuse(status, detail), keep_alive=False))
        self._notify()

    def _release(self, count: int) -> None:
        count = min(count, self._held)  # all was released when the connection was lost
        self._held -= count
        self._all.buffered -= count

    def overdue(self, now: float) -> bool:
        return now > self._deadline and (not self.answering or self._writable is not None)

    def finish(self) -> asyncio.Task[None] | None:
        """Answer what has arrived, and end; the task that does it."""
        self._broken = True
        self._notify()
        return self._task

    def abort(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._transport is not None:
            self._transport.abort()

    # --- answering ----------------------------------------------------------------------------------------------------

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _serve(self) -> None:
        transport = self._transport
        if transport is None:
            return
        while True:
            quickly = self.answering  # another request, which is to be answered first
            if quickly or not self._ready:
                if self._broken and not quickly:
                    break
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake
                continue
            request = self._ready.popleft()
            self.answering = True
            response = request.refused or await self._all.handler(request)
            self._release(len(request.body))
            keep_alive = request.keep_alive and not response.close
            if transport.is_closing():
                break
            self._deadline = self._all.clock() + self._limits.write_s
            transport.write(response.encode(keep_alive=keep_alive))
            if self._writable is not None:
                await self._writable
            self.answering = False
            self._deadline = self._all.clock() + self._limits.idle_s
            if transport.is_closing():
                break
            if request.refused is not None:
                self._linger(transport)
                return
            if not keep_alive:
                break
            self._resume(transport)
        self.answering = False
        transport.close()

    def _resume(self, transport: asyncio.Transport) -> None:
        if self._paused:
            self._paused = False
            transport.resume_reading()

    def _linger(self, transport: asyncio.Transport) -> None:
        """Say that this was all, and wait for the caller to close; `overdue` ends it otherwise."""
        self._deadline = self._all.clock() + LINGER_S
        self._resume(transport)
        transport.write_eof()
