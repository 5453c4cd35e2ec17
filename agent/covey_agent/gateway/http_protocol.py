"""HTTP/1.1 on the loopback: one connection, its requests answered in order, every wait and every size bounded.

What a request means is the handler's. A connection keeps what its caller sends ahead (pipelining) and reads no further while it answers.
A request whose head is known (`intake`) is answered without a task's help where the handler can (`Quick`); all others, and those that
come ahead, are answered by the connection's task, one after the other.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from covey_agent.gateway.http_intake import Intake, Lying, Shared
from covey_agent.gateway.http_messages import HttpRequest, HttpResponse
from covey_agent.gateway.known_heads import KnownHead
from covey_agent.gateway.settings import Limits

log = logging.getLogger(__name__)

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


class Connections:
    """All open connections of the gateway, over TCP and Unix socket."""

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
        self.shared = Shared(limits, refuse)
        self.open: set[HttpConnection] = set()

    @property
    def buffered(self) -> int:
        """Bytes of requests that are not answered yet."""
        return self.shared.buffered

    def accept(self) -> HttpConnection:
        return HttpConnection(self)

    async def sweep(self) -> None:
        """For ever: end connections that keep the gateway waiting."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self.shared.buffers.rest()
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
        self._intake = Intake(connections.shared, self)
        self._transport: asyncio.Transport | None = None
        self._ready: deque[HttpRequest] = deque()
        self._lying: Lying | None = None  # the request that is being answered quickly
        self._wake: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._deadline = 0.0
        self._paused = False
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
        self._intake.closed = True
        self._intake.release(self._intake.held)
        for waiting in (self._wake, self._writable):
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # as much as there is
        return self._intake.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """The loop reads and tells in one go, so that one buffer is enough for all connections."""
        if self.answering and not self._paused and not self._intake.closed and self._transport is not None:
            self._transport.pause_reading()  # the caller is ahead: no further
            self._paused = True
        self._intake.updated(nbytes)

    def eof_received(self) -> bool:
        # A caller that has said all may still want its answer.
        self._intake.closed = True
        self._notify()
        return self.answering or bool(self._ready)

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # --- the intake's calls -------------------------------------------------------------------------------------------

    def on_begin(self) -> None:
        if not self.answering:
            self._deadline = self._all.clock() + self._limits.read_s

    def say(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def on_request(self, request: HttpRequest) -> None:
        self._ready.append(request)
        self._notify()

    def on_lying(self, lying: Lying) -> None:
        head, body = lying.head, lying.body
        if not self.answering and not self._ready:
            self.answering, self._lying = True, lying
            if self._all.quick(head, body, self._answered):
                return
            self.answering, self._lying = False, None
        self.on_request(HttpRequest("POST", head.url, head.headers, bytes(body)))
        self._all.shared.buffers.give_back(lying.buffer)

    # --- how long it may take -----------------------------------------------------------------------------------------

    def overdue(self, now: float) -> bool:
        return now > self._deadline and (not self.answering or self._writable is not None)

    def finish(self) -> asyncio.Task[None] | None:
        """Answer what has arrived, and end; the task that does it."""
        self._intake.closed = True
        self._notify()
        return self._task

    def abort(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._transport is not None:
            self._transport.abort()

    # --- answering ----------------------------------------------------------------------------------------------------

    def _answered(self, answer: bytes) -> None:
        """What `Quick` took is answered; the connection may have ended meanwhile."""
        lying, self._lying = self._lying, None
        transport = self._transport
        if lying is None or transport is None:
            return
        self._all.shared.buffers.give_back(lying.buffer)
        self._intake.release(lying.head.size)
        if not transport.is_closing():
            transport.write(answer)
        if self._writable is None:
            self._rest()
        else:
            self._deadline = self._all.clock() + self._limits.write_s
            self._writable.add_done_callback(self._rest)

    def _rest(self, *_: object) -> None:
        """Until the next request, which may be there already."""
        self.answering = False
        self._deadline = self._all.clock() + self._limits.idle_s
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._resume(self._transport)
        if self._ready or self._intake.closed:
            self._notify()

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
                if self._intake.closed and not quickly:
                    break
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake
                continue
            request = self._ready.popleft()
            self.answering = True
            response = request.refused or await self._all.handler(request)
            self._intake.release(len(request.body))
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
