"""What SQLite and PostgreSQL share but SQLAlchemy spells per dialect, lists cut to what a statement takes, and the order of locks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Table, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute, Session

from covey_server.db.tables import Device

T = TypeVar("T")
# SQLite takes 32,766 bound values a statement; lists of ids stay far below.
CHUNK = 500


def chunks(items: Sequence[T], size: int = CHUNK) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def table_of(kind: type[DeclarativeBase]) -> Table:
    table = kind.__table__
    assert isinstance(table, Table)  # noqa: S101 - for the type checker; a mapped class has a table
    return table


def lock_devices(session: Session, devices: Iterable[str]) -> None:
    """Whoever changes several devices, or what belongs to them (orders, slots), locks the devices before, all in one order, so that
    no two such transactions wait for each other. SQLite has one writer and needs it not."""
    if session.get_bind().dialect.name != "postgresql":
        return
    for part in chunks(sorted(set(devices))):
        query = select(Device.id).where(Device.id.in_(part)).order_by(Device.id)
        session.execute(query.with_for_update(key_share=True)).all()


def _insert(session: Session, table: Table) -> sqlite.Insert | postgresql.Insert:
    if session.get_bind().dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)


def insert_missing(session: Session, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert the rows whose primary key is not there yet."""
    if rows:
        session.execute(_insert(session, table).on_conflict_do_nothing(), list(rows))


def upsert(session: Session, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert the rows, or update those whose primary key is there. Every row names every column."""
    if not rows:
        return
    statement = _insert(session, table)
    keys = [column.name for column in table.primary_key]
    changed = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    session.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed), list(rows))


def stored_keys(
    session: Session,
    device: InstrumentedAttribute[str],
    seq: InstrumentedAttribute[int],
    keys: set[tuple[str, int]],
) -> set[tuple[str, int]]:
    """Those of `keys` that are in the table of these two columns."""
    held: set[tuple[str, int]] = set()
    for part in chunks(sorted(keys)):
        query = select(device, seq).where(tuple_(device, seq).in_(part)).distinct()
        held.update((row[0], row[1]) for row in session.execute(query))
    return held
