"""What was verified, on disk: `root.json`, `timestamp.json`, `snapshot.json`, `targets.json` and each delegated role's, byte for
byte as they came, and every root that was trusted in `root_history/`.

Each file is replaced durably. A kill between two of them leaves an older trusted state, never a wrong one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from covey_agent import durable
from covey_agent.tuf.errors import RepositoryError
from covey_contract.reasons import Reason

HISTORY = "root_history"
_LONGEST_NAME = 200
_FLOOR = "time_floor"


class MetadataFolder:
    """Reading gives None for what is not there or cannot be read: it is fetched again. Writing raises `RepositoryError`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time; another waits (each ends by its deadline)."""
        with _storing():
            durable.make_folder(self.path)
            descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            durable.sweep(self.path)
            yield
        finally:
            os.close(descriptor)

    def read(self, role: str, limit: int) -> bytes | None:
        return _read(self.path / file_name(role), limit)

    def write(self, role: str, data: bytes) -> None:
        with _storing():
            durable.write(self.path / file_name(role), data)

    def remove(self, role: str) -> None:
        """Durably: it must not come back after a power cut."""
        with _storing():
            (self.path / file_name(role)).unlink(missing_ok=True)
            durable.sync_folder(self.path)

    def read_root(self, version: int, limit: int) -> bytes | None:
        return _read(self.path / HISTORY / f"{version}.root.json", limit)

    def write_root(self, version: int, data: bytes, *, newest: bool = True) -> None:
        """A copy under its version; then, if it is the newest, `root.json`."""
        with _storing():
            durable.make_folder(self.path / HISTORY)
            durable.write(self.path / HISTORY / f"{version}.root.json", data)
            if newest:
                durable.write(self.path / "root.json", data)

    def time_floor_ms(self) -> int:
        """The newest time that signed metadata has shown, in Unix milliseconds; 0: none yet."""
        data = _read(self.path / _FLOOR, 32)
        return int(data) if data and data.isdigit() else 0

    def raise_time_floor(self, time_ms: int) -> None:
        if time_ms > self.time_floor_ms():
            with _storing():
                durable.write(self.path / _FLOOR, str(time_ms).encode())


def file_name(role: str) -> str:
    """A role's file: its name quoted, so that none leaves the folder; by its digest where that is too long for a file.

    >>> file_name("../a b")
    '..%2Fa%20b.json'
    """
    quoted = quote(role, safe="")
    if len(quoted) > _LONGEST_NAME:
        quoted = f"{quoted[:64]}-{hashlib.sha256(role.encode('utf-8', 'surrogatepass')).hexdigest()}"
    return f"{quoted}.json"


def _read(path: Path, limit: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError:
        return None
    return data if len(data) <= limit else None


@contextlib.contextmanager
def _storing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RepositoryError(
            Reason.STORAGE_ERROR, f"{error.filename or 'metadata'}: {error.strerror or error}"
        ) from error
