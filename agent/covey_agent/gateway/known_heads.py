"""Heads of requests that have been parsed before: an application asks again and again with the same one, byte for byte.

The parser is a function of its bytes: the same head, met where a request begins, means the same as it did the first time. So it is
parsed once, and looked up afterwards. Only heads that say how long their body is and nothing else of how it travels are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_HEADS = 64
MAX_HEAD_BYTES = 2048
END = b"\r\n\r\n"


@dataclass
class KnownHead:
    """`size`: bytes of the body. `meaning`: the handler's own, of the path and the headers; it is kept with the head."""

    raw: bytes
    url: bytes
    headers: dict[bytes, bytes]
    size: int
    meaning: object = None

    @property
    def whole(self) -> int:
        """Bytes of the head and the body."""
        return len(self.raw) + self.size


class KnownHeads:
    """Of all connections."""

    def __init__(self) -> None:
        self._heads: dict[bytes, KnownHead] = {}

    def find(self, data: bytearray, count: int) -> tuple[bytes, KnownHead | None]:
        """The head at the front of the first `count` bytes, empty if it is not all there or too long to be kept; and what is known of it."""
        end = data.find(END, 0, min(count, MAX_HEAD_BYTES))
        raw = bytes(data[: end + len(END)]) if end > 0 else b""
        return raw, self._heads.get(raw)

    def learn(self, head: KnownHead) -> None:
        if len(self._heads) >= MAX_HEADS:
            self._heads.clear()
        self._heads[head.raw] = head
