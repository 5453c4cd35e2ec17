"""What one caller sends, as requests: every size bounded, and nothing looked at twice that was looked at before.

Parsing is httptools'. A request whose head has been parsed before (`known_heads`) does not go through the parser: its body is read to where
it stays until it is answered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import httptools

from covey_agent.gateway.buffers import Buffers
from covey_agent.gateway.http_messages import HttpRequest, HttpResponse
from covey_agent.gateway.known_heads import KnownHead, KnownHeads
from covey_agent.gateway.settings import Limits

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Shared:
    """What all connections have in common. `refuse` gives the answer to what is not to be looked at; `buffered`: bytes of bodies that are
    not answered yet."""

    def __init__(self, limits: Limits, refuse: Callable[[int, str], HttpResponse]) -> None:
        self.limits = limits
        self.refuse = refuse
        self.buffered = 0
        self.buffers = Buffers()
        self.heads = KnownHeads()


@dataclass(frozen=True)
class Lying:
    """A request with a known head, all of which lies in `buffer`; who is done with it gives that back."""

    head: KnownHead
    buffer: bytearray

    @property
    def body(self) -> memoryview:
        return memoryview(self.buffer)[len(self.head.raw) : self.head.whole]


class Owner(Protocol):
    """Whose intake it is."""

    def on_begin(self) -> None:
        """A request begins to arrive."""

    def on_request(self, request: HttpRequest) -> None: ...

    def on_lying(self, lying: Lying) -> None: ...

    def say(self, data: bytes) -> None:
        """To the caller, at once."""


class Intake:
    """`closed`: nothing more is taken in. `held`: bytes of bodies that are not answered yet; who has answered says so (`release`)."""

    def __init__(self, shared: Shared, owner: Owner) -> None:
        self._shared = shared
        self._limits = shared.limits
        self._owner = owner
        self._parser = httptools.HttpRequestParser(self)
        self._request = HttpRequest()
        self._in_header = False
        self._header_bytes = 0
        self._unparsed = 0  # bytes of whole pieces that ended within the header
        self._chunks: list[bytes] = []
        self._body_bytes = 0  # of the request that is arriving
        self._between = True  # no request has begun that is not all there
        self._first = b""  # the head of the request that is arriving, if it may become a known one
        self._fed = 0  # bytes of that request, and of what came with it
        self._lying: Lying | None = None  # of which a part has come
        self._have = 0
        self.held = 0
        self.closed = False

    def buffer(self) -> memoryview:
        """Where to read to, next; then `updated`."""
        if (lying := self._lying) is not None:
            return memoryview(lying.buffer)[self._have : lying.head.whole]
        return self._shared.buffers.view

    def updated(self, count: int) -> None:
        """So many bytes were read."""
        if self.closed:
            return
        if self._lying is not None:
            self._go_on(self._lying, count)
            return
        buffers = self._shared.buffers
        if self._between:
            self._first, known = self._shared.heads.find(buffers.current, count)
            if known is not None and count <= known.whole:
                self._begin(known, count)
                return
            self._fed = 0
        self._fed += count
        self._parse(buffers.view[:count])

    def release(self, count: int) -> None:
        count = min(count, self.held)  # all was released when the connection was lost
        self.held -= count
        self._shared.buffered -= count

    # --- requests whose heads are known -------------------------------------------------------------------------------

    def _begin(self, head: KnownHead, count: int) -> None:
        self._body_bytes = head.size
        self.held += head.size
        self._shared.buffered += head.size
        if self._shared.buffered > self._limits.buffered_bytes:
            self._full()
        elif count == head.whole:
            self._body_bytes = 0
            self._owner.on_lying(Lying(head, self._shared.buffers.take()))
        else:
            self._owner.on_begin()
            self._lying = Lying(head, self._shared.buffers.take_part(count, head.whole))
            self._have = count

    def _go_on(self, lying: Lying, count: int) -> None:
        self._have += count
        if self._have == lying.head.whole:
            self._lying = None
            self._body_bytes = 0
            self._owner.on_lying(lying)

    def _learn(self, request: HttpRequest) -> None:
        """Keep the head, if these were its bytes, all of them: what came since it began is it and its body."""
        head, self._first = self._first, b""  # what comes with this request is not looked at
        plain = request.headers.keys().isdisjoint((b"transfer-encoding", b"expect"))
        whole = self._fed == len(head) + len(request.body)
        if head and plain and whole and request.method == "POST" and request.keep_alive:
            self._shared.heads.learn(KnownHead(head, request.url, request.headers, len(request.body)))

    # --- the parser's calls -------------------------------------------------------------------------------------------

    def _parse(self, data: memoryview) -> None:
        try:
            self._parser.feed_data(data)
            if self._in_header:  # the parser keeps an unfinished header line to itself
                self._unparsed += len(data)
                self._count_header(0)
        except httptools.HttpParserUpgrade:
            self._refuse(400, "protocol upgrades are not supported")
        except httptools.HttpParserError as error:
            if not self.closed:  # our own refusals also end the parser
                self._refuse(400, f"not a valid HTTP request: {error}")

    def on_message_begin(self) -> None:
        self._request = HttpRequest()
        self._between = False
        self._in_header = True
        self._header_bytes = self._unparsed = 0
        self._chunks = []
        self._owner.on_begin()

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
        elif request.headers.get(b"expect", b"").lower() == b"100-continue":
            self._owner.say(CONTINUE)

    def on_body(self, body: bytes) -> None:
        if self.closed:
            return
        self._body_bytes += len(body)
        self.held += len(body)
        self._shared.buffered += len(body)
        self._chunks.append(body)
        if self._body_bytes > self._limits.body_bytes:
            self._too_large()
        elif self._shared.buffered > self._limits.buffered_bytes:
            self._full()

    def on_message_complete(self) -> None:
        if self.closed:
            return
        request = self._request
        request.body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks = []
        self._body_bytes = 0
        self._between = True
        self._learn(request)
        self._owner.on_request(request)

    # --- limits -------------------------------------------------------------------------------------------------------

    def _count_header(self, count: int) -> None:
        self._header_bytes += count
        if max(self._header_bytes, self._unparsed) > self._limits.header_bytes and not self.closed:
            self._refuse(431, f"the request's header is longer than {self._limits.header_bytes} bytes")

    def _too_large(self) -> None:
        self._refuse(413, f"the body is longer than {self._limits.body_bytes} bytes")

    def _full(self) -> None:
        self._refuse(503, "too many bytes wait to be answered; try again later")

    def _refuse(self, status: int, detail: str) -> None:
        """Answer so in its turn, and end the connection: where the next request would begin is not known."""
        self.closed = True
        self.release(self._body_bytes)
        self._body_bytes = 0
        self._chunks.clear()
        self._owner.on_request(HttpRequest(refused=self._shared.refuse(status, detail), keep_alive=False))
