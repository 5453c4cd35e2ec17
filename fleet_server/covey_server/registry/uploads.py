"""Files on their way in, piece by piece, over connections and servers that may end at any time.

An upload is a folder: what was said of the file at its beginning, and the bytes that have come. How many there are is where it goes on;
nothing else is remembered. Whoever writes checks before each piece that nobody else has written since, so that a connection that hangs
and the one that replaces it do no harm.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import msgspec

from covey_server.errors import Conflict, Invalid, NotFound, TooLarge, TooMany, Unavailable

MAX_OPEN = 32  # of one owner
KEEP_S = 86_400.0  # after the last byte
MARGIN_BYTES = 256 << 20  # of the disk, left free
_ID = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What was said of the file when its upload began. `sha256`: empty if nothing was said of it."""

    owner: str
    filename: str
    size: int
    sha256: str = ""


class Partial(msgspec.Struct, frozen=True, kw_only=True):
    """An upload as it stands. `expires_s`: Unix time in seconds, unless more bytes come."""

    id: str
    said: Said
    offset: int
    expires_s: float

    @property
    def whole(self) -> bool:
        return self.offset == self.said.size


class Writer:
    """Goes on with an upload. Use it in a `with` statement; what was written stays, however that ends."""

    def __init__(self, path: Path, size: int, offset: int, lock: threading.Lock) -> None:
        self._path = path
        self._size = size
        self._lock = lock
        self._file: BinaryIO | None = None
        self.offset = offset

    def __enter__(self) -> Writer:
        self._file = self._path.open("r+b", buffering=0)
        self._file.seek(self.offset)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._file.fileno())
            self._file.close()

    def write(self, data: bytes) -> None:
        """Raises `TooLarge`, `Conflict` if somebody else has gone on with it, `OSError` if the disk is full."""
        if self._file is None:
            raise RuntimeError("an upload's writer is used in a with statement")
        if self.offset + len(data) > self._size:
            raise TooLarge(f"more bytes than the {self._size} that were announced")
        with self._lock:
            if os.fstat(self._file.fileno()).st_size != self.offset:
                raise Conflict("another connection has gone on with this upload", code="offset_mismatch")
            view = memoryview(data)
            while view:
                written = self._file.write(view)
                view = view[written:]
                self.offset += written or 0


class Uploads:
    """All of a server. `limit` bytes for one file."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self._limit = limit
        self._lock = threading.Lock()

    def create(self, said: Said) -> Partial:
        """A new upload; or the one that this owner began before, where the file's SHA-256 was said. Raises `TooLarge`, `TooMany`, `Unavailable`."""
        if said.size > self._limit:
            raise TooLarge(f"a file of {said.size} bytes; at most {self._limit}", limit=self._limit)
        if said.size == 0:
            raise Invalid("the file is empty", field="Upload-Length")
        self.sweep()
        self.folder.mkdir(parents=True, exist_ok=True)
        name = _name(said)
        with contextlib.suppress(NotFound):
            return self.get(name, said.owner)
        if sum(one.said.owner == said.owner and not one.whole for one in self._all()) >= MAX_OPEN:
            raise TooMany(f"{MAX_OPEN} uploads are open already; finish or delete one")
        if shutil.disk_usage(self.folder).free < said.size + MARGIN_BYTES:
            raise Unavailable(f"the server's disk has no room for {said.size} bytes; nothing was kept")
        new = self.folder / f"{name}.{secrets.token_hex(4)}.new"
        new.mkdir()
        (new / "said.json").write_bytes(msgspec.json.encode(said))
        (new / "data").touch()
        try:
            new.rename(self.folder / name)
        except OSError:  # the same owner began the same at the same time
            shutil.rmtree(new, ignore_errors=True)
        return self.get(name, said.owner)

    def get(self, upload: str, owner: str) -> Partial:
        """Raises `NotFound`, also for somebody else's."""
        if not _ID.fullmatch(upload):
            raise NotFound(f"there is no upload {upload[:80]!r}")
        found = self._read(self.folder / upload)
        if found is None or found.said.owner != owner:
            raise NotFound(f"there is no upload {upload}; it may have expired")
        return found

    def go_on(self, upload: str, owner: str, offset: int) -> Writer:
        """Raises `NotFound`, or `Conflict` if it does not stand at this offset."""
        found = self.get(upload, owner)
        if found.offset != offset:
            raise Conflict(f"the upload stands at {found.offset}, not at {offset}", code="offset_mismatch")
        if found.whole:  # it may be a blob by now, which nobody may open to write
            raise Conflict("the upload has all of its bytes", code="upload_complete")
        return Writer(self.data(upload), found.said.size, offset, self._lock)

    def data(self, upload: str) -> Path:
        """Where its bytes lie."""
        return self.folder / upload / "data"

    def finished(self, upload: str, owner: str) -> Partial:
        """One of which every byte is here. It stays until it expires, so that a push whose answer was lost may be repeated. Raises
        `NotFound`, `Conflict`."""
        found = self.get(upload, owner)
        if not found.whole:
            raise Conflict(f"the upload has {found.offset} of {found.said.size} bytes", code="upload_incomplete")
        return found

    def remove(self, upload: str, owner: str) -> None:
        """Raises `NotFound`."""
        self.get(upload, owner)
        shutil.rmtree(self.folder / upload, ignore_errors=True)

    def sweep(self) -> None:
        """Forget those that nobody has gone on with for a day, and what a kill has left of new ones."""
        now_s = time.time()  # files' times are the system's
        for folder in self.folder.glob("*"):
            found = self._read(folder) if _ID.fullmatch(folder.name) else None
            if now_s >= (found.expires_s if found is not None else _changed_s(folder) + KEEP_S):
                shutil.rmtree(folder, ignore_errors=True)

    def _all(self) -> list[Partial]:
        return [
            found for folder in self.folder.glob("*") if _ID.fullmatch(folder.name) and (found := self._read(folder))
        ]

    def _read(self, folder: Path) -> Partial | None:
        try:
            said = msgspec.json.decode((folder / "said.json").read_bytes(), type=Said)
            stat = (folder / "data").stat()
        except (OSError, msgspec.DecodeError):
            return None
        return Partial(id=folder.name, said=said, offset=stat.st_size, expires_s=stat.st_mtime + KEEP_S)


def check_sha256(text: str) -> str:
    if not _SHA256.fullmatch(text):
        raise Invalid("sha256 is not a SHA-256 in hex", field="Upload-Metadata")
    return text


def _name(said: Said) -> str:
    """Of a file whose digest is known always the same, so that whoever begins again goes on."""
    if not said.sha256:
        return secrets.token_hex(16)
    told = "\0".join((said.owner, said.sha256, str(said.size), said.filename))
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def _changed_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
