"""Sorting a million rows in SQL: tables whose rows are numbered in the order of some keys, and shares that follow from the numbers.

Window functions would say the same in one statement and take SQLite three times as long; a table that is filled in order numbers
its rows for nothing, on PostgreSQL too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    CursorResult,
    FromClause,
    Integer,
    MetaData,
    Select,
    Table,
    and_,
    collate,
    func,
    insert,
    literal_column,
    select,
    text,
    true,
)
from sqlalchemy.orm import Session

from covey_server.core.draw import SHARE

NUMBER = "n"


class Sorter:
    """Makes temporary tables in a session's transaction. PostgreSQL drops them at its end, SQLite when told to."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._postgresql = session.get_bind().dialect.name == "postgresql"

    def new(self, table: Table) -> Table:
        """Create it, in place of one of that name."""
        self.drop(table.name)
        table.create(self._session.connection(), checkfirst=False)
        return table

    def drop(self, *names: str) -> None:
        for name in names:
            self._session.execute(text(f"DROP TABLE IF EXISTS {name}"))

    def fill(self, table: Table, rows: Select[Any], keys: Sequence[ColumnElement[Any]]) -> int:
        """Insert rows in the order of the keys, so that the table's first column numbers them; how many there are."""
        names = [column.name for column in rows.selected_columns]
        filled = self._session.execute(
            insert(table).from_select(names, rows.order_by(*keys), include_defaults=False),
            execution_options={"preserve_rowcount": True},
        )
        self.analyze(table)
        return cast("CursorResult[Any]", filled).rowcount

    def shares(self, name: str, table: FromClause, strata: Sequence[str]) -> tuple[FromClause, ColumnElement[int]]:
        """A numbered table whose rows are sorted by `strata`, joined to what it takes to tell each row's share of its stratum:
        `covey_server.core.draw.share` of its rank in it. `name` is that of a new table."""
        by = [table.c[column] for column in strata]
        sizes = self.new(
            temporary(
                name,
                *(Column(column.name, column.type, primary_key=True) for column in by),
                Column("start", BigInteger, nullable=False),
                Column("size", BigInteger, nullable=False),
            )
        )
        number = table.c[NUMBER]
        counted = select(*by, func.min(number), func.count()).group_by(*by)
        self._session.execute(insert(sizes).from_select([*strata, "start", "size"], counted))
        self.analyze(sizes)
        joined = table.join(sizes, and_(true(), *(sizes.c[column.name] == column for column in by)))
        two, one, half = (literal_column(str(each), BigInteger) for each in (2, 1, SHARE // 2))
        return joined, (two * (number - sizes.c.start) + one) * half // sizes.c.size

    def bytewise(self, column: ColumnElement[str]) -> ColumnElement[str]:
        """As Python sorts texts, and SQLite; PostgreSQL does as its locale says unless told otherwise."""
        return collate(column, "C") if self._postgresql else column

    def analyze(self, table: Table) -> None:
        """PostgreSQL gathers no statistics of temporary tables by itself."""
        if self._postgresql:
            self._session.execute(text(f"ANALYZE {table.name}"))


def temporary(name: str, *columns: Column[Any]) -> Table:
    return Table(name, MetaData(), *columns, prefixes=["TEMPORARY"], postgresql_on_commit="DROP")


def number() -> Column[int]:
    """The column that numbers a table's rows; on SQLite it is the row's own number, so that the table is kept in its order."""
    return Column(NUMBER, Integer, primary_key=True)
