"""The audit log: what tampering shows, and what the database refuses of itself."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable

import pytest
from sqlalchemy import Executable, delete, insert, text, update
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from covey_contract.audit_chain import Entry, Flaw, Head, check
from covey_hil.testing.postgresql import new_database
from covey_server import audit
from covey_server.audit import Actor
from covey_server.db.engine import Database
from covey_server.db.tables import AuditEntry

ANNA = Actor("anna", "operator", "api 127.0.0.1")


def _fill(database: Database, count: int) -> None:
    for number in range(count):
        with database.session() as session:
            audit.record(session, ANNA, "model.push", f"digits {number}", {"größe": 0.1, "n": [1, None]}, number)


def _entries(database: Database) -> list[Entry]:
    with database.reading() as session:
        return list(audit.entries(session))


def _without_triggers(session: Session) -> None:
    """What somebody who owns the database may do."""
    if session.get_bind().dialect.name == "sqlite":
        names = session.scalars(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all()
        for name in names:
            session.execute(text(f"DROP TRIGGER {name}"))
    else:
        session.execute(text("ALTER TABLE audit DISABLE TRIGGER ALL"))


def test_an_untouched_chain_is_whole(database: Database) -> None:
    _fill(database, 5)
    with database.reading() as session:
        found = audit.verify(session)
    assert (found.flaw, found.entries, found.head.id) == (None, 5, 5)


# --- the database refuses ---------------------------------------------------------------------------------------------

FORBIDDEN: dict[str, Executable] = {
    "update": update(AuditEntry).where(AuditEntry.id == 2).values(who="mallory"),
    "update of all": update(AuditEntry).values(detail={}),
    "delete": delete(AuditEntry).where(AuditEntry.id == 3),
    "delete of all": delete(AuditEntry),
    "insert between": text(
        "INSERT INTO audit (id, at_ms, who, origin, action, object, detail, previous_hash, hash) "
        "VALUES (0, 1, 'mallory', '', '', '', '{}', '', '')"
    ),
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_the_database_refuses_changes(any_database: Database, name: str) -> None:
    _fill(any_database, 3)
    before = _entries(any_database)
    with pytest.raises(DatabaseError, match="append-only"), any_database.session() as session:
        session.execute(FORBIDDEN[name])
    assert _entries(any_database) == before
    _fill(any_database, 1)
    assert len(_entries(any_database)) == 4


def test_sqlite_refuses_replace_and_postgresql_truncate(any_database: Database) -> None:
    _fill(any_database, 3)
    statement = (
        "REPLACE INTO audit SELECT id, at_ms, 'mallory', origin, action, object, detail, previous_hash, hash FROM audit"
        if any_database.sqlite
        else "TRUNCATE audit"
    )
    with pytest.raises(DatabaseError, match="append-only"), any_database.session() as session:
        session.execute(text(statement))
    assert {one.who for one in _entries(any_database)} == {"anna"}


# --- and whoever gets round that is found out -------------------------------------------------------------------------


def _rehash(session: Session, number: int, **values: object) -> None:
    """Change an entry and give it the hash that fits."""
    found = session.get_one(AuditEntry, number)
    for name, value in values.items():
        setattr(found, name, value)
    entry = Entry(**{field.name: getattr(found, field.name) for field in dataclasses.fields(Entry)})
    found.hash = entry.computed()


def _insert_after_2(session: Session) -> None:
    """An entry that follows 2 as it should, the later ones moved up."""
    for number in (5, 4, 3):
        session.execute(update(AuditEntry).where(AuditEntry.id == number).values(id=number + 1))
    before = session.get_one(AuditEntry, 2)
    made = Entry(3, 2, "mallory", "", "device.remove", "x", {}, before.hash, "")
    session.execute(insert(AuditEntry).values(**dataclasses.asdict(made) | {"hash": made.computed()}))


Tamper = Callable[[Session], object]
TAMPERING: dict[str, tuple[Tamper, Flaw]] = {
    "who": (lambda s: s.execute(update(AuditEntry).where(AuditEntry.id == 3).values(who="eve")), Flaw(3, "changed")),
    "detail": (lambda s: s.execute(update(AuditEntry).where(AuditEntry.id == 3).values(detail={})), Flaw(3, "changed")),
    "time": (lambda s: s.execute(update(AuditEntry).where(AuditEntry.id == 3).values(at_ms=9)), Flaw(3, "changed")),
    "first": (
        lambda s: s.execute(update(AuditEntry).where(AuditEntry.id == 1).values(previous_hash="1" * 64)),
        Flaw(1, "changed"),
    ),
    "changed with a hash that fits": (lambda s: _rehash(s, 3, who="eve"), Flaw(3, "changed")),
    "the last changed with a hash that fits": (lambda s: _rehash(s, 5, who="eve"), Flaw(5, "changed")),
    "removed": (lambda s: s.execute(delete(AuditEntry).where(AuditEntry.id == 3)), Flaw(3, "removed")),
    "the first removed": (lambda s: s.execute(delete(AuditEntry).where(AuditEntry.id == 1)), Flaw(1, "removed")),
    "the end cut off": (lambda s: s.execute(delete(AuditEntry).where(AuditEntry.id > 3)), Flaw(4, "removed")),
    "all removed": (lambda s: s.execute(delete(AuditEntry)), Flaw(1, "removed")),
    "inserted": (_insert_after_2, Flaw(3, "inserted")),
    "inserted before the first": (
        lambda s: s.execute(text("UPDATE audit SET id = 0 WHERE id = 5")),
        Flaw(0, "inserted"),
    ),
}


@pytest.mark.parametrize("name", TAMPERING)
def test_tampering_is_found_and_named(database: Database, name: str) -> None:
    tamper, flaw = TAMPERING[name]
    _fill(database, 5)
    with database.session() as session:
        _without_triggers(session)
        tamper(session)
    with database.reading() as session:
        assert audit.verify(session).flaw == flaw


def test_tampering_is_found_on_postgresql_too(postgresql: str) -> None:
    database = Database(new_database(postgresql))
    database.migrate()
    _fill(database, 4)
    with database.session() as session:
        _without_triggers(session)
        session.execute(update(AuditEntry).where(AuditEntry.id == 2).values(who="eve"))
    with database.reading() as session:
        assert audit.verify(session).flaw == Flaw(2, "changed")
    database.close()


def test_a_log_that_was_written_anew_is_found_by_an_earlier_export(database: Database) -> None:
    """All of it hashed again, and the head kept apart as well: only somebody who kept the old head can tell."""
    _fill(database, 4)
    kept = Head(4, _entries(database)[-1].hash)
    with database.session() as session:
        _without_triggers(session)
        session.execute(delete(AuditEntry))
        session.execute(text("DELETE FROM settings WHERE key = 'audit-head'"))
    _fill(database, 3)
    with database.reading() as session:
        assert audit.verify(session).flaw is None
        assert audit.verify(session, kept).flaw == Flaw(4, "removed")
    with database.session() as session:
        audit.record(session, ANNA, "model.push", "other", {}, 1)
    with database.reading() as session:
        assert audit.verify(session, kept).flaw == Flaw(4, "changed")


def test_a_chain_goes_on_from_every_head_it_had(database: Database) -> None:
    _fill(database, 4)
    found = _entries(database)
    assert check(found, *(Head(one.id, one.hash) for one in found)).flaw is None


# --- writing ----------------------------------------------------------------------------------------------------------


def test_racing_writers_make_one_chain(any_database: Database) -> None:
    threads = [threading.Thread(target=_fill, args=(any_database, 8)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with any_database.reading() as session:
        found = audit.verify(session)
    assert (found.flaw, found.entries, found.head.id) == (None, 32, 32)


def test_an_entry_goes_with_its_change(database: Database) -> None:
    def fail() -> None:
        with database.session() as session:
            audit.record(session, ANNA, "model.push", "digits", {}, 1)
            raise RuntimeError("the change failed")

    with pytest.raises(RuntimeError, match="the change failed"):
        fail()
    _fill(database, 1)
    assert [one.id for one in _entries(database)] == [1]
