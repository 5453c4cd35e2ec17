"""What the gateway reads callers' requests into."""

from __future__ import annotations

# What is taken from a socket at once.
RECEIVE_BYTES = 256 * 1024
# So many are kept for later; more are in use only where many requests are on their way at the same time.
_SPARE = 2


class Buffers:
    """Of all connections: `current` is where the loop reads to next, whichever connection it is. Whoever needs longer what was read into it
    takes it, and gives it back."""

    def __init__(self) -> None:
        self._spare: list[bytearray] = []
        self._become(bytearray(RECEIVE_BYTES))

    def _become(self, buffer: bytearray) -> None:
        self.current = buffer
        self.view = memoryview(buffer)

    def take(self) -> bytearray:
        """The current one; another takes its place."""
        taken = self.current
        self._become(self._spare.pop() if self._spare else bytearray(RECEIVE_BYTES))
        return taken

    def take_part(self, count: int, size: int) -> bytearray:
        """A buffer with the first `count` bytes of the current one and room for `size`, but not for many times as many."""
        if size <= RECEIVE_BYTES <= 4 * size:
            return self.take()
        buffer = bytearray(size)
        buffer[:count] = self.view[:count]
        return buffer

    def give_back(self, buffer: bytearray) -> None:
        if len(buffer) == RECEIVE_BYTES and len(self._spare) < _SPARE:
            self._spare.append(buffer)
