"""One file of a build while it is fetched: its bytes in place, and a bitmap of the blocks that are verified.

On disk `NAME` has the file's full size from the start (a full disk is found out before anything is fetched) and `NAME.bits` one bit
a block. The bytes are flushed before the bitmap that marks them. After a kill, blocks that were written but not yet
marked are found again by their digests.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from covey_agent import durable

DIGEST_BYTES = 32
_PIECE = 1 << 20


class Partial:
    """`expected` holds the blocks' SHA-256 digests, one after the other; empty for the block table, which has none."""

    def __init__(self, path: Path, size: int, block_size: int, expected: bytes, sync_blocks: int) -> None:
        self._path = path
        self._bits_path = path.with_name(path.name + ".bits")
        self._size = size
        self._block_size = block_size
        self._count = -(-size // block_size)
        self._expected = expected
        self._sync_blocks = sync_blocks
        self._have: set[int] = set()
        self._unmarked = 0
        self._first_missing = 0
        self._file: int | None = None

    def open(self) -> None:
        """Make or take up the file. Raises `OSError`; if the disk is full, no half-made file is left."""
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fresh = os.fstat(self._file).st_size != self._size
            if fresh:
                os.ftruncate(self._file, 0)
                self._bits_path.unlink(missing_ok=True)
                if self._size:
                    os.posix_fallocate(self._file, 0, self._size)
                durable.sync_folder(self._path.parent)
            if not fresh:
                self._have = self._marked()
                self._find_unmarked()
        except OSError:
            self.close()
            if not self._have:
                with contextlib.suppress(OSError):
                    self._path.unlink()
            raise
        self._first_missing = 0

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @property
    def complete(self) -> bool:
        return len(self._have) == self._count

    @property
    def missing_bytes(self) -> int:
        """About: the last block counts as a whole one."""
        return min(self._size, (self._count - len(self._have)) * self._block_size)

    def has(self, index: int) -> bool:
        return index in self._have

    def length(self, index: int) -> int:
        """Bytes of a block; 0 if there is no such block."""
        return max(0, min(self._block_size, self._size - index * self._block_size))

    def fits(self, index: int, data: bytes) -> bool:
        """Whether these are the block's bytes, as far as can be told."""
        if not 0 <= index < self._count or len(data) != self.length(index):
            return False
        if not self._expected:
            return True
        return hashlib.sha256(data).digest() == self._digest(index)

    def put(self, index: int, data: bytes) -> None:
        """Write a block that `fits`; raises `OSError`."""
        assert self._file is not None  # noqa: S101  # callers open it first
        offset, view = index * self._block_size, memoryview(data)
        while view:
            written = os.pwrite(self._file, view, offset)
            offset, view = offset + written, view[written:]
        self._have.add(index)
        self._unmarked += 1
        if self._unmarked >= self._sync_blocks:
            self.flush()

    def flush(self) -> None:
        """Make the blocks durable, then the bitmap that marks them. Raises `OSError`."""
        if self._file is None or not self._unmarked:
            return
        os.fdatasync(self._file)
        bits = bytearray(-(-self._count // 8))
        for index in self._have:
            bits[index >> 3] |= 1 << (index & 7)
        durable.write(self._bits_path, bytes(bits))
        self._unmarked = 0

    def missing(self, limit: int, busy: Collection[int]) -> list[int]:
        """The first blocks that are neither here nor asked for, ascending, within `limit` of the first of them."""
        while self._first_missing in self._have:
            self._first_missing += 1
        wanted: list[int] = []
        for index in range(self._first_missing, self._count):
            if wanted and index >= wanted[0] + limit:
                break
            if index not in self._have and index not in busy:
                wanted.append(index)
        return wanted

    def missing_digests(self) -> Iterator[tuple[int, bytes]]:
        """Of the blocks that are not here; none for the block table."""
        if self._expected:
            yield from ((index, self._digest(index)) for index in range(self._count) if index not in self._have)

    def forget(self) -> None:
        """Hold none of its blocks for verified any longer."""
        self._bits_path.unlink(missing_ok=True)
        self._have.clear()
        self._first_missing = 0
        self._unmarked = 0

    def matches(self, sha256: str) -> bool:
        """Whether the whole file has that digest. Reads it piece by piece."""
        assert self._file is not None  # noqa: S101
        digest = hashlib.sha256()
        for at in range(0, self._size, _PIECE):
            digest.update(os.pread(self._file, min(_PIECE, self._size - at), at))
        return digest.hexdigest() == sha256

    def read_all(self) -> bytes:
        """The whole file; for the block table, which is 0.05 % of a build."""
        assert self._file is not None  # noqa: S101
        return os.pread(self._file, self._size, 0) if self._size else b""

    def _digest(self, index: int) -> bytes:
        return self._expected[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]

    def _marked(self) -> set[int]:
        try:
            bits = self._bits_path.read_bytes()
        except FileNotFoundError:
            return set()
        if len(bits) != -(-self._count // 8):
            return set()
        return {index for index in range(self._count) if bits[index >> 3] >> (index & 7) & 1}

    def _find_unmarked(self) -> None:
        """Blocks that were written after the bitmap was last stored: they lie soon after the marked ones."""
        if not self._expected or self._file is None:
            return
        # A corrupt file has lost its bitmap, and then every block is judged; else those that can have been in flight.
        until = max(self._have, default=-1) + 1 + self._sync_blocks + 256
        for index in range(min(until, self._count) if self._have else self._count):
            if index in self._have:
                continue
            data = os.pread(self._file, self.length(index), index * self._block_size)
            if len(data) == self.length(index) and hashlib.sha256(data).digest() == self._digest(index):
                self._have.add(index)
                self._unmarked += 1
