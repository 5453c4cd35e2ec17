"""The draw of a plan as SQL: every device of the target that gets a build, in the order or orders in which stages take them.

It is a temporary table, gone with the transaction, and each stage is one statement on it. `covey_server.core.plan` says the same
for a few devices in plain Python; a test holds the two together. The order of the draw is that of `covey_server.core.draw`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    CursorResult,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Subquery,
    Table,
    and_,
    case,
    collate,
    func,
    insert,
    literal,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy.orm import Session

from covey_server.campaigns.choice import Kind
from covey_server.core.draw import MODULUS, SHARE, Permutation
from covey_server.db.tables import Device

_KINDS = "campaign_kinds"
_DRAW = "campaign_draw"
_MILLION = 1_000_000


@dataclass(frozen=True)
class Order:
    """In which order devices are taken: by the columns `first`, smallest first, then as drawn, spread in proportion over the
    kinds that the columns `strata` tell apart, and of each kind's devices over those that the columns `within` do. All name
    columns of the draw: profile, site, criticality."""

    strata: tuple[str, ...] = ("profile",)
    within: tuple[str, ...] = ()
    first: tuple[str, ...] = ()


class Draw:
    """`table` has `device`, `choice`, `profile`, `site`, `criticality`, `stage` (None: not taken) and, for each of `orders`, the
    device's place in it, from 1; `size` is the number of devices."""

    def __init__(self, session: Session, orders: Sequence[Order]) -> None:
        self._session = session
        self._orders = tuple(dict.fromkeys(orders))
        places = [Column(_place(index), Integer, nullable=False) for index in range(1, len(self._orders))]
        self.table = Table(
            _DRAW,
            MetaData(),
            # An alias of the row's number on SQLite, so that the table is kept in its order.
            Column(_place(0), Integer, primary_key=True, autoincrement=False),
            *places,
            Column("device", String(64), nullable=False),
            Column("choice", Integer, nullable=False),
            Column("profile", String(64), nullable=False),
            Column("site", String(256), nullable=False),
            Column("criticality", SmallInteger, nullable=False),
            Column("stage", Integer),
            prefixes=["TEMPORARY"],
            postgresql_on_commit="DROP",
        )
        self._kinds = Table(
            _KINDS,
            MetaData(),
            Column("profile", String(64), primary_key=True),
            Column("facts_digest", String(64), primary_key=True),
            Column("choice", Integer, nullable=False),
            Column("fits", SmallInteger, nullable=False),
            prefixes=["TEMPORARY"],
            postgresql_on_commit="DROP",
        )
        self.size = 0

    def fill(
        self, target: ColumnElement[bool], kinds: Sequence[tuple[Kind, int, bool]], permutation: Permutation
    ) -> None:
        """Draw the devices that meet `target` and are of a kind that fits. `kinds`: each with the number of its choice, and
        whether that is a build."""
        self.drop()
        connection = self._session.connection()
        self._kinds.create(connection, checkfirst=False)
        self.table.create(connection, checkfirst=False)
        if not kinds:
            return
        rows = [
            {"profile": kind.profile, "facts_digest": kind.facts_digest, "choice": choice, "fits": int(fits)}
            for kind, choice, fits in kinds
        ]
        self._session.execute(insert(self._kinds), rows)
        self._analyze(self._kinds)
        spread = self._spread(self._candidates(target, permutation))
        names = [_place(index) for index in range(len(self._orders))]
        carried = ("device", "choice", "profile", "site", "criticality")
        filled = self._session.execute(
            insert(self.table).from_select(
                [*names, *carried],
                select(
                    *(
                        func.row_number().over(order_by=[*self._keys(spread, index, order)]).label(name)
                        for index, (name, order) in enumerate(zip(names, self._orders, strict=True))
                    ),
                    *(spread.c[name] for name in carried),
                ),
            ),
            execution_options={"preserve_rowcount": True},
        )
        self.size = cast("CursorResult[Any]", filled).rowcount
        self._analyze(self.table)

    def drop(self) -> None:
        """Needed on SQLite, where a temporary table lives as long as its connection."""
        for name in (_DRAW, _KINDS):
            self._session.execute(text(f"DROP TABLE IF EXISTS {name}"))

    def left_out(self, target: ColumnElement[bool]) -> Subquery:
        """The devices that meet `target` and get no build: `device`, and `choice` (None: of a kind that was not there a moment
        ago)."""
        return (
            select(Device.id.label("device"), self._kinds.c.choice)
            .select_from(Device)
            .outerjoin(self._kinds, self._of_kind())
            .where(Device.revoked_ms.is_(None), target, func.coalesce(self._kinds.c.fits, 0) == 0)
            .subquery()
        )

    # --- stages ---------------------------------------------------------------------------------------------------

    def take_members(self, stage: int, members: ColumnElement[bool]) -> int:
        """All devices that are left and meet a condition over `Device`; how many."""
        ids = select(Device.id).where(Device.revoked_ms.is_(None), members)
        return self._take(stage, self.table.c.device.in_(ids))

    def take_first(self, stage: int, number: int, order: Order) -> int:
        """The first `number` in that order of those that are left; how many there were."""
        if number <= 0:
            return 0
        place = self.table.c[_place(self._orders.index(order))]
        last = select(place).where(self.table.c.stage.is_(None)).order_by(place).limit(number).subquery()
        found = self._session.scalar(select(func.max(last.c[place.name])))
        return 0 if found is None else self._take(stage, place <= found)

    def take_kind(self, stage: int, by: str, kind: str) -> int:
        """All devices that are left and of one kind, as the column `by` tells them apart; how many."""
        return self._take(stage, self.table.c[by] == kind)

    def take_each(self, stage: int, by: str, order: Order, *, percent: float | None = None, count: int = 0) -> int:
        """Of each kind that the column `by` tells apart, the first in that order, until `percent` of its devices, or `count`,
        are in this stage or an earlier one; how many."""
        table = self.table.c
        kind, place, first = table[by], table[_place(self._orders.index(order))], table[_place(0)]
        counts, taken = case((table.stage < 0, 0), else_=1), case((table.stage >= 0, 1), else_=0)
        total = func.sum(counts, type_=BigInteger).over(partition_by=kind)
        placed = func.sum(taken, type_=BigInteger).over(partition_by=kind)
        wanted: ColumnElement[int] = literal(count, BigInteger)
        if percent is not None:
            # Rounded up, in whole numbers: a millionth of a percent is the least that matters.
            parts = literal(round(percent * _MILLION), BigInteger)
            wanted = (total * parts + literal(100 * _MILLION - 1, BigInteger)) // literal(100 * _MILLION, BigInteger)
        rank = func.row_number().over(partition_by=[kind, table.stage.is_(None)], order_by=place)
        ranked = select(first, table.stage, rank.label("rank"), (wanted - placed).label("room")).subquery()
        chosen = select(ranked.c[first.name]).where(ranked.c.stage.is_(None), ranked.c.rank <= ranked.c.room)
        return self._take(stage, first.in_(chosen))

    def take_rest(self, stage: int, number: int, order: Order) -> int:
        """All but the first `number` in that order; how many."""
        place = self.table.c[_place(self._orders.index(order))]
        return self._take(stage, place > number)

    def kinds(self, by: str) -> dict[str, int]:
        """How many devices that are left there are of each kind that the column `by` tells apart."""
        rows = self._session.execute(
            select(self.table.c[by], func.count()).where(self.table.c.stage.is_(None)).group_by(self.table.c[by])
        )
        return {str(kind): number for kind, number in rows}

    def make_up(self, by: str, stages: int) -> list[dict[str, int]]:
        """Of each stage, how many devices of each kind."""
        table = self.table.c
        found: list[dict[str, int]] = [{} for _ in range(stages)]
        rows = self._session.execute(
            select(table.stage, table[by], func.count()).where(table.stage >= 0).group_by(table.stage, table[by])
        )
        for stage, kind, number in rows:
            found[stage][str(kind)] = number
        return found

    def _take(self, stage: int, condition: ColumnElement[bool]) -> int:
        taken = self._session.execute(
            update(self.table).where(self.table.c.stage.is_(None), condition).values(stage=stage)
        )
        return cast("CursorResult[Any]", taken).rowcount

    # --- the statement --------------------------------------------------------------------------------------------

    def _candidates(self, target: ColumnElement[bool], permutation: Permutation) -> Subquery:
        drawn = (Device.lot * literal_column(str(permutation.factor)) + literal_column(str(permutation.offset))) % (
            literal_column(str(MODULUS))
        )
        return (
            select(
                Device.id.label("device"),
                self._kinds.c.choice,
                self._kinds.c.profile,
                func.coalesce(Device.site, "").label("site"),
                Device.criticality,
                drawn.label("drawn"),
            )
            .select_from(Device)
            .join(self._kinds, self._of_kind())
            .where(Device.revoked_ms.is_(None), target, self._kinds.c.fits == 1)
            .subquery()
        )

    def _spread(self, candidates: Subquery) -> Subquery:
        """The candidates with, for each order, their share of their stratum."""
        inner = {order.strata + order.within: f"inner_{at}" for at, order in enumerate(self._orders) if order.within}
        if inner:
            shares = [self._share(candidates, strata, None).label(name) for strata, name in inner.items()]
            candidates = select(*candidates.c, *shares).subquery()
        outer = [
            self._share(candidates, order.strata, inner.get(order.strata + order.within) if order.within else None)
            for order in self._orders
        ]
        return select(*candidates.c, *(each.label(f"share_{at}") for at, each in enumerate(outer))).subquery()

    def _share(self, candidates: Subquery, strata: Sequence[str], before: str | None) -> ColumnElement[int]:
        """A candidate's share of its stratum, in the order of the column `before`, then as drawn; `covey_server.core.draw.share`."""
        by = [candidates.c[name] for name in strata]
        keys: list[ColumnElement[Any]] = [] if before is None else [candidates.c[before]]
        keys += [candidates.c.drawn, self._bytewise(candidates.c.device)]
        rank = func.row_number(type_=BigInteger).over(partition_by=by, order_by=keys)
        size = func.count(type_=BigInteger).over(partition_by=by)
        half = literal_column(str(SHARE // 2), BigInteger)
        two, one = literal_column("2", BigInteger), literal_column("1", BigInteger)
        return (two * rank - one) * half // size

    def _keys(self, spread: Subquery, index: int, order: Order) -> list[ColumnElement[Any]]:
        first = [spread.c[name] for name in order.first]
        return [*first, spread.c[f"share_{index}"], spread.c.drawn, self._bytewise(spread.c.device)]

    def _of_kind(self) -> ColumnElement[bool]:
        return and_(
            self._kinds.c.facts_digest == Device.facts_digest,
            self._kinds.c.profile == func.coalesce(Device.profile, ""),
        )

    @property
    def _postgresql(self) -> bool:
        return self._session.get_bind().dialect.name == "postgresql"

    def _bytewise(self, column: ColumnElement[str]) -> ColumnElement[str]:
        """As Python sorts texts, and SQLite; PostgreSQL does as its locale says unless told otherwise."""
        return collate(column, "C") if self._postgresql else column

    def _analyze(self, table: Table) -> None:
        """PostgreSQL gathers no statistics of temporary tables by itself."""
        if self._postgresql:
            self._session.execute(text(f"ANALYZE {table.name}"))


def _place(index: int) -> str:
    return f"place_{index}"
