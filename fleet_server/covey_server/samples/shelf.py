"""Where fetched samples lie: a row in the database for each, and its file under its SHA-256 in the folder `samples` of the server's data.

Invariants: a row's file is there, whole, and was checked; a device's sample is there once, whatever it is called. Never more bytes than
the setting allows, never the disk's last ones. They may show people: they go after the days that the setting says, or when somebody
deletes them, and the folder is the server's alone. What a kill leaves between row and file is removed at the next start.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import ColumnElement, delete, func, or_, select, update
from sqlalchemy.orm import Session

from covey_contract.errors import DecodeError
from covey_contract.samples import MAX_SAMPLE_BYTES, SampleEntry, read_sample
from covey_server.clock import Clock
from covey_server.db.engine import Database
from covey_server.db.tables import Sample, SampleFetch
from covey_server.errors import NotFound
from covey_server.fleet.columns import clean
from covey_server.fleet.sql import chunks
from covey_server.registry.blobs import BlobStore

MARGIN_BYTES = 256 << 20  # of the disk, left free
_DAY_MS = 86_400_000
_SLICE = 500


class NoRoom(Exception):
    """No further sample may be kept; the message says why."""


class SampleShelf:
    """`prepare` once, before anything else; the rest from any thread."""

    def __init__(self, database: Database, folder: Path, clock: Clock, *, max_bytes: int, keep_days: int) -> None:
        self.files = BlobStore(folder)
        self._database = database
        self._clock = clock
        self._max_bytes = max_bytes
        self._keep_days = keep_days
        # Between a row and its file: one that goes must not take what another has just come to need.
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Make the folder, and remove files without a row. Raises `OSError`."""
        self.files.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.incoming.mkdir(mode=0o700, exist_ok=True)
        self.files.clear_incoming()
        there = [path.name for path in self.files.folder.glob("??/*")]
        with self._database.reading() as session:
            self._remove(session, there)

    @property
    def incoming(self) -> Path:
        """For files that are on their way in, on the same disk."""
        return self.files.folder / "incoming"

    def held(self, device: str, entries: Iterable[SampleEntry]) -> set[tuple[str, str]]:
        """Those of the device's samples that are here, by model and name."""
        found: set[tuple[str, str]] = set()
        with self._database.reading() as session:
            for part in chunks(sorted({entry.name for entry in entries})):
                rows = session.execute(
                    select(Sample.model, Sample.name).where(Sample.device == device, Sample.name.in_(part))
                )
                found.update((model, name) for model, name in rows)
        return found

    def check_room(self, size: int) -> None:
        """Raises `NoRoom`."""
        if shutil.disk_usage(self.files.folder).free < size + MARGIN_BYTES:
            raise NoRoom(f"the server's disk has no room for {size} bytes more")
        with self._database.reading() as session:
            held = session.scalar(select(func.sum(Sample.size))) or 0
        if held + size > self._max_bytes:
            raise NoRoom(
                f"the server holds {int(held)} bytes of samples and may hold {self._max_bytes} (setting samples_max_bytes); "
                "take those that you need and delete some"
            )

    def keep(self, fetch: int, device: str, entry: SampleEntry, file: BinaryIO) -> bool:
        """Check the file, keep it and count it for the fetch; False if the device's same sample is here already. Raises `NoRoom`,
        `DecodeError` for a file that is no sample, `OSError`."""
        about = read_sample(file).about
        if about.model != entry.model:
            raise DecodeError(f"{entry.name} is of the model {about.model}, not of {entry.model}")
        with self._lock:
            self.check_room(entry.size)
            file.seek(0)
            sha256, size = self.files.put(file, MAX_SAMPLE_BYTES)
            with self._database.session() as session:
                same = or_(
                    Sample.sha256 == sha256,
                    (Sample.model == entry.model) & (Sample.name == entry.name),
                )
                new = session.scalar(select(Sample.id).where(Sample.device == device, same).limit(1)) is None
                if new:
                    session.add(
                        Sample(
                            device=device,
                            model=entry.model,
                            name=entry.name,
                            sha256=sha256,
                            size=size,
                            version=about.version,
                            target=about.target,
                            build=about.build,
                            time_ms=about.time_ms,
                            request=clean(about.id, 256),
                            fetched_ms=self._clock(),
                        )
                    )
                session.execute(
                    update(SampleFetch)
                    .where(SampleFetch.id == fetch)
                    .values(fetched=SampleFetch.fetched + 1, bytes=SampleFetch.bytes + size)
                )
            if not new:
                with self._database.reading() as session:
                    self._remove(session, [sha256])
        return new

    def forget(self, *which: ColumnElement[bool]) -> int:
        """Delete those that meet all conditions, a slice at a time so that no write is long; how many went."""
        gone = 0
        while part := self._forget_slice(which):
            gone += part
        return gone

    def prune(self) -> int:
        """Delete a slice of what is older than it is kept; how many samples went."""
        before = self._clock() - self._keep_days * _DAY_MS
        with self._database.reading() as session:
            old_fetch = session.scalar(select(SampleFetch.id).where(SampleFetch.ended_ms < before).limit(1))
            old_sample = session.scalar(select(Sample.id).where(Sample.fetched_ms < before).limit(1))
        if old_fetch is not None:
            with self._database.session() as session:
                session.execute(delete(SampleFetch).where(SampleFetch.ended_ms < before))
        return 0 if old_sample is None else self._forget_slice((Sample.fetched_ms < before,))

    def _forget_slice(self, which: Sequence[ColumnElement[bool]]) -> int:
        with self._lock:
            with self._database.session() as session:
                rows = session.execute(select(Sample.id, Sample.sha256).where(*which).limit(_SLICE)).all()
                if rows:
                    session.execute(delete(Sample).where(Sample.id.in_([row.id for row in rows])))
            with self._database.reading() as session:
                self._remove(session, [row.sha256 for row in rows])
        return len(rows)

    def _remove(self, session: Session, files: Sequence[str]) -> None:
        """Of these files, those that no row names."""
        for part in chunks(sorted(set(files))):
            named = set(session.scalars(select(Sample.sha256).where(Sample.sha256.in_(part))))
            for sha256 in part:
                if sha256 not in named:
                    with contextlib.suppress(NotFound):  # a name that is no digest: somebody else's file
                        self.files.path(sha256).unlink(missing_ok=True)
