"""A request and an answer, as the handler sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

JSON = "application/json"


@dataclass
class HttpRequest:
    """`url` is the raw target; header names are in lower case."""

    method: str = ""
    url: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes | bytearray = b""
    keep_alive: bool = True
    refused: HttpResponse | None = None  # the answer to a request that is not to be looked at


@dataclass(frozen=True)
class HttpResponse:
    """`encoded`: all of it, for a connection that goes on, where it is there already."""

    status: int
    body: Sequence[bytes | memoryview] = ()
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()
    close: bool = False
    encoded: bytes = b""

    def encode(self, *, keep_alive: bool) -> bytes:
        if self.encoded:
            return self.encoded
        lines = [
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {sum(len(piece) for piece in self.body)}",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        if not keep_alive or self.close:
            lines.append("Connection: close")
        return b"".join(("\r\n".join(lines).encode("latin-1"), b"\r\n\r\n", *self.body))
