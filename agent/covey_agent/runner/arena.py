"""Memory that the gateway and one runner share: a request's inputs are laid there once, and the runtime reads them in place.

One inference is in flight per runner, so that there is one place, which the next request's inputs take. It is an anonymous file that was
sealed against being cut short: whatever a build does in its process, the gateway's mapping stays whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Sequence

Buffer = bytes | bytearray | memoryview

# Smaller inputs go with the frame itself.
SHARED_FROM = 4096
# So much is kept for good; what larger requests took is given back once none as large has come for a while (`trim`).
KEPT_BYTES = 4 << 20


class Arena:
    """`descriptor` is this process's own. Either end maps what it needs, when it needs it; also the runner writably, since some runtimes
    copy what they may not write."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map: mmap.mmap | None = None
        self._size = 0
        self._used = 0  # most bytes of a request since the last `trim`
        self._held = 0  # so many bytes from the front on may have memory
        self._seen: memoryview | None = None

    @classmethod
    def made(cls) -> Arena | None:
        """The gateway's end of a new one; None where the kernel has no such files."""
        try:
            descriptor = os.memfd_create("covey-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except (AttributeError, OSError):
            return None
        try:
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        except OSError:
            os.close(descriptor)
            return None
        return cls(descriptor)

    def room(self, size: int) -> memoryview:
        """Where a request's tensors may be read to, one after the other, instead of being copied there later; raises `OSError` if there is no
        memory for them."""
        return memoryview(self._of(size))[:size]

    def lay(self, tensors: Sequence[Buffer]) -> None:
        """Copy the tensors one after the other, unless they were read to `room`; raises `OSError` if there is no memory for them."""
        if isinstance(first := tensors[0], memoryview) and first.obj is self._map:
            return
        laid = self._of(sum(map(len, tensors)))
        at = 0
        for tensor in tensors:
            laid[at : at + len(tensor)] = tensor
            at += len(tensor)

    def _of(self, size: int) -> mmap.mmap:
        self._used = max(self._used, size)
        self._held = max(self._held, size)
        if size > self._size:
            whole = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
            os.ftruncate(self.descriptor, whole)
            self._remap(whole)
        assert self._map is not None  # noqa: S101  # nothing is laid that has no bytes
        return self._map

    def view(self, size: int) -> memoryview:
        """The first `size` bytes, as the other end has laid them; raises `ValueError` if there are fewer. The same object as before, if that
        was of the same bytes of the same memory."""
        if self._seen is not None and self._seen.nbytes == size:
            return self._seen
        if size > self._size:
            self._remap(os.fstat(self.descriptor).st_size)
        if self._map is None or size > self._size:
            raise ValueError(f"{size} bytes were announced in shared memory, which has {self._size}")
        self._seen = memoryview(self._map)[:size]
        return self._seen

    @property
    def is_large(self) -> bool:
        """Whether it holds more than is kept for good."""
        return self._held > KEPT_BYTES

    def trim(self) -> None:
        """Give back what no request has needed since the last time; none is being computed. Between requests of one size nothing is given
        back: to have the memory again takes longer than to copy it."""
        keep = max(-(-self._used // mmap.PAGESIZE) * mmap.PAGESIZE, KEPT_BYTES)
        self._used = 0
        if self._map is not None and self._held > keep:
            with contextlib.suppress(OSError):
                self._map.madvise(mmap.MADV_REMOVE, keep, self._size - keep)
            self._held = keep

    def _remap(self, size: int) -> None:
        # A mapping before lives on as long as anybody looks at it.
        self._map = mmap.mmap(self.descriptor, size) if size else None
        self._size = size
        self._seen = None

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor, self._map, self._size, self._seen = -1, None, 0, None
        self._used = self._held = 0
