"""The repository's files on disk, as any web server may serve them: `metadata/` and `targets/`.

Invariant: a reader never sees half an edition. Files under a version's name are written before the `timestamp.json` that leads to
them, and never change afterwards; that one rename publishes. What a reader may still be fetching is kept for a day.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from covey_server.errors import NotFound
from covey_server.fleet.durable import write_durably

_METADATA_NAME = re.compile(r"(?:[1-9]\d{0,9}\.[A-Za-z0-9_.~-]{1,200}|timestamp)\.json")
_TARGET_NAME = re.compile(r"models/[A-Za-z0-9._-]{1,64}/[A-Za-z0-9._+-]{1,64}/[0-9a-f]{64}\.[A-Za-z0-9._-]{1,64}")
_WITHDRAWN = "withdrawn.json"
_KEPT_MS = 24 * 3600 * 1000


def metadata_name(role: str, version: int) -> str:
    """A version's file. `timestamp.json` alone has none in its name.

    >>> metadata_name("models~digits", 3)
    '3.models~digits.json'
    """
    return "timestamp.json" if role == "timestamp" else f"{version}.{quote(role, safe='')}.json"


class Shelf:
    """`locked` around everything that reads in order to write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._threads = threading.RLock()
        self._depth = 0

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One writer at a time, of all threads and processes; whoever is in may enter again."""
        with self._threads:
            if self._depth:
                yield
                return
            for part in ("metadata", "targets"):
                (self.folder / part).mkdir(mode=0o755, parents=True, exist_ok=True)
            handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                self._depth = 1
                yield
            finally:
                self._depth = 0
                os.close(handle)

    def metadata(self, name: str) -> bytes:
        """Raises `NotFound`, also for what is no name of a metadata file."""
        if not _METADATA_NAME.fullmatch(name):
            raise NotFound("there is no such metadata")
        return self._read(self.folder / "metadata" / name)

    def target(self, name: str) -> bytes:
        """A target's file by its name with the hash in it. Raises `NotFound`."""
        if not _TARGET_NAME.fullmatch(name) or ".." in name.split("/"):
            raise NotFound("there is no such target")
        return self._read(self.folder / "targets" / name)

    def newest_root(self) -> int:
        """The version; 0 where there is no repository yet."""
        versions = [int(path.name.split(".")[0]) for path in (self.folder / "metadata").glob("*.root.json")]
        return max(versions, default=0)

    def put_target(self, name: str, data: bytes) -> None:
        """Raises `OSError`."""
        place = self.folder / "targets" / name
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            write_durably(place, data)

    def withdrawn(self) -> set[str]:
        """Paths that were taken back, and are not to be released by themselves again."""
        try:
            return set(json.loads((self.folder / _WITHDRAWN).read_bytes()))
        except FileNotFoundError:
            return set()

    def note_withdrawn(self, paths: Collection[str]) -> None:
        """Raises `OSError`."""
        document = json.dumps(sorted(self.withdrawn() | set(paths)), indent=1)
        write_durably(self.folder / _WITHDRAWN, document.encode() + b"\n")

    def publish(self, files: Sequence[tuple[str, bytes]]) -> None:
        """Write the files in this order; a `timestamp.json` must be the last. Raises `OSError`: then the old edition stands."""
        for name, data in files:
            write_durably(self.folder / "metadata" / name, data)

    def prune(self, keep: Collection[str], now_ms: int) -> int:
        """Remove metadata that nothing leads to and nobody can still be fetching; roots stay for ever. How many went."""
        gone = 0
        for path in (self.folder / "metadata").glob("*.json"):
            if path.name in keep or path.name.endswith(".root.json") or path.name == "timestamp.json":
                continue
            if now_ms - path.stat().st_mtime * 1000 > _KEPT_MS:
                path.unlink(missing_ok=True)
                gone += 1
        return gone

    @staticmethod
    def _read(path: Path) -> bytes:
        try:
            return path.read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise NotFound("there is no such file in the repository") from error
