"""What the device has to tell the server and the server has not yet acknowledged: reports and telemetry, in SQLite on disk.

Invariants: a sequence number is never used twice, not even after the spool was lost (a new one begins at the milliseconds that
`clock` gives, times 1024); a record leaves only when it is acknowledged, or, telemetry first and oldest first, when the spool is full.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from covey_contract.errors import TooLargeError
from covey_contract.messages import Report, Telemetry
from covey_contract.topics import Up
from covey_contract.wire import decode, encode

log = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS records_kind ON records (kind, seq);
"""
_HELD = 500
LIMIT = 10_000  # telemetry records; four times as many reports


class Record(NamedTuple):
    """A record to be sent as it is."""

    seq: int
    kind: Up
    body: bytes


class Outbox:
    """Single-threaded. Records that the disk does not take are held in memory until it does."""

    def __init__(self, path: Path, *, clock: Callable[[], int], limit: int = LIMIT, resend_s: float = 20.0) -> None:
        self._path = path
        self._clock = clock
        self._limit = limit
        self._resend_s = resend_s
        self._sent: dict[int, float] = {}
        self._held: deque[Report | Telemetry] = deque(maxlen=_HELD)
        self._database: sqlite3.Connection | None = None

    def open(self, *, check: bool = True) -> None:
        """Open the spool; a damaged one is set aside and said so. `check`: look through all of it. Whoever does not call it, or in vain, has
        it done by the first use that can.
        Raises `OSError` or `sqlite3.Error` if none can be made."""
        try:
            self._database = self._connect(check=check)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            log.error("the spool is damaged (%s) and set aside; what was not yet acknowledged is lost", error)
            for ending in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{self._path}{ending}").replace(f"{self._path}{ending}.damaged")
            self._database = self._connect(check=False)

    def _connect(self, *, check: bool) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, isolation_level=None, timeout=5.0, check_same_thread=False)
        try:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            database.execute("PRAGMA cache_size=-512")
            database.executescript(_SCHEMA)
            if database.execute("SELECT count(*) FROM sqlite_sequence WHERE name = 'records'").fetchone()[0] == 0:
                database.execute(
                    "INSERT INTO sqlite_sequence (name, seq) VALUES ('records', ?)", (self._clock() << 10,)
                )
            if check and database.execute("PRAGMA quick_check").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("quick_check failed")
        except sqlite3.Error:
            database.close()
            raise
        return database

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def add(self, message: Report | Telemetry) -> None:
        """Spool a message; its `seq` is replaced by the next number. Never raises for a full disk."""
        self._held.append(message)
        self.flush()

    def flush(self) -> None:
        """Try again to store what the disk did not take."""
        while self._held:
            try:
                self._store(self._held[0])
            except (sqlite3.Error, OSError) as error:
                log.warning("the spool takes nothing (%s); %d records are held in memory", error, len(self._held))
                self._give_up()
                return
            self._held.popleft()

    def _store(self, message: Report | Telemetry) -> None:
        database = self._open_database()
        database.execute("BEGIN IMMEDIATE")
        try:
            kind = Up.REPORT if isinstance(message, Report) else Up.TELEMETRY
            seq = database.execute("INSERT INTO records (kind, body) VALUES (?, x'')", (kind,)).lastrowid
            assert seq is not None  # noqa: S101  # SQLite gives one for every insert
            body = encode(msgspec.structs.replace(message, seq=seq))
            database.execute("UPDATE records SET body = ? WHERE seq = ?", (body, seq))
            self._trim(database)
            database.execute("COMMIT")
        except TooLargeError as error:
            database.execute("ROLLBACK")
            log.warning("a record is not sent: %s", error)
        except sqlite3.Error:
            with contextlib.suppress(sqlite3.Error):
                database.execute("ROLLBACK")
            raise

    def _trim(self, database: sqlite3.Connection) -> None:
        for kind, most in ((Up.TELEMETRY, self._limit), (Up.REPORT, self._limit * 4)):
            count = database.execute("SELECT count(*) FROM records WHERE kind = ?", (kind,)).fetchone()[0]
            if count > most:
                database.execute(
                    "DELETE FROM records WHERE seq IN (SELECT seq FROM records WHERE kind = ? ORDER BY seq LIMIT ?)",
                    (kind, count - most),
                )

    def acknowledged(self, seqs: Iterable[int]) -> None:
        """Forget what the server has stored. Raises nothing: what cannot be deleted now is only sent again."""
        numbers = list(seqs)
        try:
            database = self._open_database()
            database.execute("BEGIN IMMEDIATE")
            database.executemany("DELETE FROM records WHERE seq = ?", [(seq,) for seq in numbers])
            database.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            log.warning("acknowledged records could not be removed: %s", error)
            self._give_up()
        for seq in numbers:
            self._sent.pop(seq, None)

    def connected(self) -> None:
        """A new connection: all that is not acknowledged is due again."""
        self._sent.clear()

    def due(self, now: float, limit: int = 50) -> list[Record]:
        """What to send now, reports first; marks it as sent. At most `limit` records are unacknowledged on the way at once.
        Raises nothing: what cannot be read now is sent later."""
        self._sent = {seq: at for seq, at in self._sent.items() if now - at < self._resend_s}
        room = limit - len(self._sent)
        if room <= 0:
            return []
        query = "SELECT seq, kind, body FROM records ORDER BY kind = 'telemetry', seq LIMIT ?"
        try:
            rows = self._open_database().execute(query, (room + len(self._sent),)).fetchall()
        except (sqlite3.Error, OSError) as error:
            log.warning("the spool cannot be read: %s", error)
            self._give_up()
            return []
        records = [Record(seq, Up(kind), body) for seq, kind, body in rows if seq not in self._sent][:room]
        self._sent.update((record.seq, now) for record in records)
        return records

    def last_seq(self) -> int | None:
        """The highest number that was given to a record; None if the spool cannot be read."""
        try:
            found = self._open_database().execute("SELECT seq FROM sqlite_sequence WHERE name = 'records'").fetchone()
        except (sqlite3.Error, OSError) as error:
            log.warning("the spool does not say its last number: %s", error)
            self._give_up()
            return None
        return int(found[0])

    def newest_reports(self, limit: int = 200) -> list[Report]:
        """Of the reports that are not acknowledged, the newest first. Raises nothing: none, if the spool cannot be read now."""
        query = "SELECT body FROM records WHERE kind = ? ORDER BY seq DESC LIMIT ?"
        try:
            rows = self._open_database().execute(query, (Up.REPORT, limit)).fetchall()
        except (sqlite3.Error, OSError) as error:
            log.warning("the spool cannot be read: %s", error)
            self._give_up()
            return []
        return [decode(Report, body) for (body,) in rows]

    @property
    def held(self) -> int:
        """How many records are in memory alone."""
        return len(self._held)

    def waiting(self) -> int:
        """How many records are not acknowledged."""
        count: int = self._open_database().execute("SELECT count(*) FROM records").fetchone()[0]
        return count + len(self._held)

    def _give_up(self) -> None:
        """An error may outlive its cause in a connection (SQLite reads only, if it could not open for writing): the next use opens anew."""
        with contextlib.suppress(sqlite3.Error):
            self.close()

    def _open_database(self) -> sqlite3.Connection:
        """Raises `OSError` or `sqlite3.Error`."""
        if self._database is None:
            self.open(check=False)
        assert self._database is not None  # noqa: S101  # it is open now
        return self._database
