"""Databases to measure on: a SQLite file as the server makes it, and a PostgreSQL cluster of our own with its default settings."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from covey_server.db.engine import Database

NAMES = ("sqlite", "postgresql")


class MissingError(Exception):
    """PostgreSQL is not installed here; `./dev setup --test` installs Debian's."""


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
    with _cluster(folder) as url:
        yield url


@contextmanager
def _cluster(folder: Path) -> Iterator[str]:
    """It listens on a socket in `folder` only, and is durable: fsync stays on."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        raise MissingError("PostgreSQL is not installed: ./dev setup --test")
    as_root = os.geteuid() == 0
    if as_root:
        shutil.chown(folder, "postgres", "postgres")

    def run(program: str, *words: str) -> None:
        become = ["runuser", "-u", "postgres", "--"] if as_root else []
        command = [*become, str(found[-1] / program), "-D", str(folder / "db"), *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")

    run("initdb", "-A", "trust", "-U", "postgres")
    run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", f"-k {folder} -c listen_addresses=", "start")
    try:
        yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
    finally:
        run("pg_ctl", "-m", "immediate", "stop")
