"""What the gateway reads callers' requests into."""

from __future__ import annotations

# What is taken from a socket at once.
RECEIVE_BYTES = 256 * 1024
# What takes more is made anew each time.
LARGE_BYTES = 64 << 20
# So many are kept for later; more are in use only where many requests are on their way at the same time.
_SPARE = 2
# One for larger requests is kept as long as they come: this often it is asked (`rest`) whether they do.
_RESTS = 5


class Buffers:
    """Of all connections: `current` is where the loop reads to next, whichever connection it is. Whoever needs longer what was read into it
    takes it, and gives it back."""

    def __init__(self) -> None:
        self._spare: list[bytearray] = []
        self._large: bytearray | None = None
        self._rests = 0
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
        buffer, self._large = self._large, None
        if buffer is None or not size <= len(buffer) <= 4 * size:
            buffer = bytearray(size)
        self._rests = 0
        buffer[:count] = self.view[:count]
        return buffer

    def give_back(self, buffer: bytearray) -> None:
        if len(buffer) == RECEIVE_BYTES and len(self._spare) < _SPARE:
            self._spare.append(buffer)
        elif RECEIVE_BYTES < len(buffer) <= LARGE_BYTES and self._large is None:
            self._large = buffer

    def rest(self) -> None:
        """Called every second: what no request has needed for some of them is let go."""
        self._rests += 1
        if self._rests >= _RESTS:
            self._large = None
