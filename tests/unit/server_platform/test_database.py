from __future__ import annotations

import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from covey_server import audit
from covey_server.audit import SYSTEM
from covey_server.db.engine import Database
from covey_server.db.tables import AuditEntry, Base, Setting
from covey_server.errors import StartError


def test_migrations_and_models_agree(any_database: Database) -> None:
    with any_database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_migrating_again_changes_nothing(any_database: Database) -> None:
    with any_database.session() as session:
        session.add(Setting(key="a", value="1"))
    any_database.migrate()
    with any_database.reading() as session:
        assert session.get_one(Setting, "a").value == "1"


def test_a_database_of_a_newer_version_is_refused(any_database: Database) -> None:
    with any_database.session() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StartError, match="not of this version"):
        any_database.migrate()


@pytest.mark.parametrize(
    "url", ["nonsense", "sqlite:////no/such/folder/covey.db", "postgresql+psycopg://x@127.0.0.1:1/x"]
)
def test_a_database_that_cannot_be_opened_is_one_line(url: str) -> None:
    with pytest.raises(StartError) as caught:
        Database(url).migrate()
    assert "\n" not in str(caught.value)


def test_writers_queue_and_none_is_lost(any_database: Database) -> None:
    """Each adds one to the same number by reading and writing it, in eight threads at once."""
    with any_database.session() as session:
        session.add(Setting(key="count", value="0"))

    def add() -> None:
        for _ in range(10):
            with any_database.session() as session:
                row = session.get_one(Setting, "count", with_for_update=True)
                row.value = str(int(row.value) + 1)
                audit.record(session, SYSTEM, "count", "count", {}, 1)

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with any_database.reading() as session:
        assert session.get_one(Setting, "count").value == "80"
        assert session.query(AuditEntry).count() == 80
        assert audit.verify(session).flaw is None


def test_reading_never_commits(any_database: Database) -> None:
    with any_database.reading() as session:
        session.add(Setting(key="a", value="1"))
        session.flush()
    with any_database.reading() as session:
        assert session.get(Setting, "a") is None


def test_a_write_inside_a_write_is_an_error_and_no_deadlock(database: Database) -> None:
    def nest() -> None:
        with database.session(), database.session():
            pass

    with pytest.raises(RuntimeError, match="inside another"):
        nest()
    with database.session() as session:
        session.add(Setting(key="a", value="1"))


def test_sqlite_survives_a_power_cut(database: Database, tmp_path: Path) -> None:
    """The journal is a write-ahead log that is synced at every commit, and foreign keys are kept."""
    with database.reading() as session:
        read = {
            name: session.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert read == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    assert (tmp_path / "covey.db-wal").exists()
