"""The database: SQLite in a file, or PostgreSQL by its URL. The one place that knows how they differ.

Invariants: `session()` commits all or nothing; `reading()` never commits and sees one snapshot (on SQLite). SQLite has one
writer at a time: `session()` queues the threads of this process on a lock and begins IMMEDIATE, so that nobody meets "database
is locked". Keep write transactions short, and never open one inside another.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DatabaseError
from sqlalchemy.orm import Session

from covey_server.errors import StartError, Unavailable

MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_MS = 15_000
_QUEUE_S = 30.0
_ROOM_MB = 128
_MIGRATE_LOCK = 0x636F7678


class Database:
    """`url` as SQLAlchemy writes it: `sqlite:///PATH` or `postgresql+psycopg://…`. Nothing is opened before first use."""

    def __init__(self, url: str) -> None:
        """Raises `StartError` if `url` is not the URL of a database that Covey can use."""
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise StartError("database_url is not a database URL (sqlite:///PATH or postgresql+psycopg://…)") from error
        self.sqlite = parsed.get_backend_name() == "sqlite"
        self._engine = _sqlite_engine(url) if self.sqlite else create_engine(url, pool_size=20, pool_pre_ping=True)
        self._writing = self._engine.execution_options(covey_writes=True)
        self._queue = threading.Lock()
        self._thread = threading.local()

    @property
    def engine(self) -> Engine:
        return self._engine

    def migrate(self) -> None:
        """Bring the schema to this version's. Raises `StartError` if the database cannot be opened or is of a newer Covey."""
        try:
            with self._engine.connect() as connection:
                if not self.sqlite:
                    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _MIGRATE_LOCK})
                try:
                    command.upgrade(alembic_config(connection), "head")
                    connection.commit()
                finally:
                    if not self.sqlite:
                        connection.rollback()
                        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _MIGRATE_LOCK})
                        connection.commit()
        except CommandError as error:
            raise StartError(f"the database is not of this version of Covey: {error}") from error
        except DatabaseError as error:
            where = self._engine.url.render_as_string(hide_password=True)
            raise StartError(f"the database {where} cannot be opened: {str(error.orig).splitlines()[0]}") from error

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A write transaction: commits on success, rolls back on any error. Raises `Unavailable` if the queue is too long."""
        if not self.sqlite:
            with Session(self._engine, expire_on_commit=False) as session, session.begin():
                yield session
            return
        if getattr(self._thread, "writing", False):
            raise RuntimeError("a write transaction inside another")
        if not self._queue.acquire(timeout=_QUEUE_S):
            raise Unavailable("the database is busy", code="database_busy")
        self._thread.writing = True
        try:
            with Session(self._writing, expire_on_commit=False) as session, session.begin():
                yield session
        finally:
            self._thread.writing = False
            self._queue.release()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A read transaction; whatever is changed in it is forgotten."""
        with Session(self._engine, expire_on_commit=False, autoflush=False) as session:
            yield session

    def close(self) -> None:
        self._engine.dispose()


@contextmanager
def roomy(session: Session) -> Iterator[None]:
    """More memory than usual for statements over the whole fleet, until the block ends (on PostgreSQL: the transaction). Sorts and
    indexes that do not fit into the usual share cost several times as much."""
    connection = session.connection()
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SET LOCAL work_mem = '{_ROOM_MB}MB'")
        yield
        return
    usual = connection.exec_driver_sql("PRAGMA cache_size").scalar()
    connection.exec_driver_sql(f"PRAGMA cache_size = -{_ROOM_MB * 1024}")
    try:
        yield
    finally:
        connection.exec_driver_sql(f"PRAGMA cache_size = {usual}")


def alembic_config(connection: Connection) -> Config:
    """Alembic's configuration for the migrations in this package, on the given connection."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _sqlite_engine(url: str) -> Engine:
    # Endpoints run in 40 threads; each needs a connection of its own at worst.
    engine = create_engine(url, pool_size=16, max_overflow=64, connect_args={"timeout": _BUSY_MS / 1000})

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        # Python's sqlite3 begins transactions when it likes; SQLAlchemy's events below begin them when we say.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (f"busy_timeout={_BUSY_MS}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("covey_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
