"""Databases to measure on: a SQLite file as the server makes it, and a PostgreSQL cluster of our own with its default settings."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from covey_hil.testing.postgresql import cluster
from covey_server.db.engine import Database

NAMES = ("sqlite", "postgresql")


@contextmanager
def opened(name: str) -> Iterator[Database]:
    """A new, migrated database of that kind; gone afterwards. Raises `MissingError`."""
    with (
        tempfile.TemporaryDirectory(prefix="covey-scale-", ignore_cleanup_errors=True) as folder,
        url_of(name, Path(folder)) as url,
    ):
        database = Database(url)
        database.migrate()
        try:
            yield database
        finally:
            database.close()


@contextmanager
def url_of(name: str, folder: Path) -> Iterator[str]:
    """The URL of a new, empty database of that kind, kept in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == "sqlite":
        yield f"sqlite:///{folder / 'covey.db'}"
        return
    with cluster(durable=True) as url:
        yield url
