"""Files by their content: a blob's name is the SHA-256 of its bytes, and what is there is whole.

Invariant: a file appears under its name by one rename, after its bytes were hashed, counted and synced. Blobs are never
changed; storing the same content twice keeps one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol

from covey_server.errors import NotFound, TooLarge

_CHUNK = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Readable(Protocol):
    """What bytes are read from."""

    def read(self, size: int, /) -> bytes: ...


class BlobWriter:
    """One blob on its way in. Write, then `commit`; leaving without a commit forgets it."""

    def __init__(self, store: BlobStore, limit: int) -> None:
        self._store = store
        self._limit = limit
        self._path = store.folder / "incoming" / secrets.token_hex(16)
        self._digest = hashlib.sha256()
        self._file: BinaryIO | None = None
        self.size = 0

    def __enter__(self) -> BlobWriter:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("xb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        self._path.unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        """Of what was written so far."""
        return self._digest.hexdigest()

    def write(self, data: bytes) -> None:
        """Raises `TooLarge` beyond the limit, `OSError` if the disk is full."""
        self.size += len(data)
        if self.size > self._limit:
            raise TooLarge(f"a file of more than {self._limit} bytes")
        self._digest.update(data)
        if self._file is None:
            raise RuntimeError("a blob writer is used in a with statement")
        self._file.write(data)

    def commit(self) -> tuple[str, int]:
        """Keep it; returns (SHA-256 in hex, bytes)."""
        if self._file is None:
            raise RuntimeError("a blob writer is used in a with statement")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        target = self._store.path(self.sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        self._path.chmod(0o444)
        self._path.replace(target)
        _sync_folder(target.parent)
        return self.sha256, self.size


class BlobStore:
    """A folder of blobs: `folder/ab/abcdef…`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def writer(self, limit: int) -> BlobWriter:
        """A new blob of at most `limit` bytes, written piece by piece."""
        return BlobWriter(self, limit)

    def put(self, stream: Readable, limit: int) -> tuple[str, int]:
        """Store all of `stream`; returns (SHA-256 in hex, bytes). Raises `TooLarge`, `OSError`; then nothing is kept."""
        with self.writer(limit) as writer:
            while chunk := stream.read(_CHUNK):
                writer.write(chunk)
            return writer.commit()

    def adopt(self, file: Path) -> tuple[str, int]:
        """Store a whole file that lies on the same disk, without copying it: from then on nobody may write to it. (SHA-256 in hex, bytes)"""
        with file.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
            os.fsync(opened.fileno())
            size = opened.tell()
        target = self.path(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.chmod(0o444)
        with contextlib.suppress(FileExistsError):
            os.link(file, target)
        _sync_folder(target.parent)
        return sha256, size

    def path(self, sha256: str) -> Path:
        """Where the blob lies, or would lie."""
        if not _SHA256.fullmatch(sha256):
            raise NotFound(f"{sha256[:80]!r} is not a SHA-256 in hex")
        return self.folder / sha256[:2] / sha256

    def has(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    def size(self, sha256: str) -> int:
        """Bytes of the blob; raises `NotFound`."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError as error:
            raise NotFound(f"there is no blob {sha256}") from error

    def open(self, sha256: str) -> BinaryIO:
        """For reading; raises `NotFound`."""
        try:
            return self.path(sha256).open("rb")
        except FileNotFoundError as error:
            raise NotFound(f"there is no blob {sha256}") from error

    def clear_incoming(self) -> None:
        """Forget uploads that a crash cut short. Only at start, when there are no others."""
        for leftover in (self.folder / "incoming").glob("*"):
            leftover.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
