"""A PostgreSQL of our own for tests and benchmarks: made from the system's package, reached by a socket alone, thrown away."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, make_url, text


class MissingError(Exception):
    """PostgreSQL is not installed here; `./dev setup --test` installs Debian's."""


@contextmanager
def cluster(*, durable: bool = False) -> Iterator[str]:
    """The URL of the database `postgres` in a new cluster with its default settings; `durable`: also with fsync. Raises
    `MissingError`."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    as_root = os.geteuid() == 0  # as which PostgreSQL refuses to run
    if not found or (as_root and shutil.which("runuser") is None):
        raise MissingError("PostgreSQL is not installed: ./dev setup --test")
    become = ["runuser", "-u", "postgres", "--"] if as_root else []
    # In a folder of its own: PostgreSQL's user may not enter those of tests, and the path of a socket must be short.
    with tempfile.TemporaryDirectory(prefix="covey-pg-", ignore_cleanup_errors=True) as folder:
        if as_root:
            shutil.chown(folder, "postgres", "postgres")

        def run(program: str, *words: str) -> None:
            command = [*become, str(found[-1] / program), "-D", f"{folder}/db", *words]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")

        options = f"-k {folder} -c listen_addresses= -c fsync={'on' if durable else 'off'}"
        run("initdb", "-A", "trust", "-U", "postgres", *([] if durable else ["--no-sync"]))
        run("pg_ctl", "-w", "-l", f"{folder}/log", "-o", options, "start")
        try:
            yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
        finally:
            run("pg_ctl", "-m", "immediate", "stop")


def new_database(url: str) -> str:
    """The URL of a new, empty database in that cluster."""
    name = f"covey_{secrets.token_hex(6)}"
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return make_url(url).set(database=name).render_as_string(hide_password=False)
