from __future__ import annotations

import threading

import pytest
from sqlalchemy import delete, update

from covey_server import audit
from covey_server.audit import Actor
from covey_server.db.engine import Database
from covey_server.db.tables import AuditEntry

ANNA = Actor("anna", "operator", "api 127.0.0.1")


def _fill(database: Database, count: int) -> None:
    for number in range(count):
        with database.session() as session:
            audit.record(session, ANNA, "model.push", f"digits {number}", {"größe": 0.1, "n": [1, None]}, number)


def test_an_untouched_chain_is_whole(database: Database) -> None:
    _fill(database, 5)
    with database.reading() as session:
        assert audit.verify(session) is None


TAMPERING = [
    (update(AuditEntry).where(AuditEntry.id == 3).values(who="mallory"), 3),
    (update(AuditEntry).where(AuditEntry.id == 3).values(detail={}), 3),
    (update(AuditEntry).where(AuditEntry.id == 3).values(at_ms=99), 3),
    (delete(AuditEntry).where(AuditEntry.id == 3), 4),
    (update(AuditEntry).where(AuditEntry.id == 1).values(previous_hash="1" * 64), 1),
]


@pytest.mark.parametrize(("statement", "bad"), TAMPERING)
def test_tampering_is_found(database: Database, statement: object, bad: int) -> None:
    _fill(database, 5)
    with database.session() as session:
        session.execute(statement)  # type: ignore[call-overload]
    with database.reading() as session:
        assert audit.verify(session) == bad


def test_racing_writers_make_one_chain(database: Database) -> None:
    threads = [threading.Thread(target=_fill, args=(database, 10)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as session:
        assert audit.verify(session) is None
        assert session.query(AuditEntry).count() == 50


def test_an_entry_goes_with_its_change(database: Database) -> None:
    def fail() -> None:
        with database.session() as session:
            audit.record(session, ANNA, "model.push", "digits", {}, 1)
            raise RuntimeError("the change failed")

    with pytest.raises(RuntimeError, match="the change failed"):
        fail()
    with database.reading() as session:
        assert session.query(AuditEntry).count() == 0
