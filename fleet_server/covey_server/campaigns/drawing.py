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
    FromClause,
    Integer,
    Select,
    SmallInteger,
    String,
    Subquery,
    Table,
    and_,
    case,
    func,
    insert,
    literal,
    literal_column,
    select,
    update,
)
from sqlalchemy.orm import Session

from covey_server.campaigns.choice import Kind
from covey_server.campaigns.ranking import NUMBER, Sorter, number, temporary
from covey_server.core.draw import MODULUS, Permutation
from covey_server.db.tables import Device

_KINDS = "campaign_kinds"
_DRAW = "campaign_draw"
_MILLION = 1_000_000
_NUMBERS = {"profile": "profile_no", "site": "site_no", "criticality": "criticality"}


@dataclass(frozen=True)
class Order:
    """In which order devices are taken: by the columns `first`, smallest first, then as drawn, spread in proportion over the
    kinds that the columns `strata` tell apart, and of each kind's devices over those that the columns `within` do. All name
    columns of the draw: profile, site, criticality."""

    strata: tuple[str, ...] = ("profile",)
    within: tuple[str, ...] = ()
    first: tuple[str, ...] = ()


@dataclass(frozen=True)
class Portion:
    """`devices` of the draw that are alike. `stage` is as in `Draw.table`."""

    stage: int | None
    choice: int
    profile: str
    site: str
    devices: int


class Draw:
    """`table` has `device`, `choice`, `profile`, `site`, `criticality`, `stage` (None: not taken) and, for each of `orders`, the
    device's place in it, from 1; `size` is the number of devices."""

    def __init__(self, session: Session, orders: Sequence[Order]) -> None:
        self._session, self._sorter = session, Sorter(session)
        self._orders = tuple(dict.fromkeys(orders))
        self.table = temporary(
            _DRAW,
            number(),
            *(Column(_place(index), Integer) for index in range(1, len(self._orders))),
            *_carried(),
            Column("profile", String(64), nullable=False),
            Column("site", String(256), nullable=False),
            Column("stage", Integer),
        )
        self._kinds = temporary(
            _KINDS,
            Column("profile", String(64), primary_key=True),
            Column("facts_digest", String(64), primary_key=True),
            Column("profile_no", Integer, nullable=False),
            Column("choice", Integer, nullable=False),
            Column("fits", SmallInteger, nullable=False),
        )
        # Numbers sort in a third of the time of texts.
        self._profiles = temporary(f"{_DRAW}_profiles", number(), Column("profile", String(64), nullable=False))
        self._sites = temporary(f"{_DRAW}_sites", number(), Column("site", String(256), nullable=False, unique=True))
        self.size = 0

    def fill(
        self, target: ColumnElement[bool], kinds: Sequence[tuple[Kind, int, bool]], permutation: Permutation
    ) -> None:
        """Draw the devices that meet `target` and are of a kind that fits. `kinds`: each with the number of its choice, and
        whether that is a build."""
        self._sorter.new(self._kinds)
        self._sorter.new(self.table)
        if not kinds:
            return
        profiles = {name: at for at, name in enumerate(sorted({kind.profile for kind, _, _ in kinds}), start=1)}
        rows = [
            {
                "profile": kind.profile,
                "facts_digest": kind.facts_digest,
                "profile_no": profiles[kind.profile],
                "choice": choice,
                "fits": int(fits),
            }
            for kind, choice, fits in kinds
        ]
        self._session.execute(insert(self._kinds), rows)
        self._session.execute(
            insert(self._sorter.new(self._profiles)), [{NUMBER: at, "profile": name} for name, at in profiles.items()]
        )
        site = func.coalesce(Device.site, "").label("site")
        self._session.execute(insert(self._sorter.new(self._sites)).from_select(["site"], select(site).group_by(site)))
        for table in (self._kinds, self._sites):
            self._sorter.analyze(table)
        self.size = self._sort(self.table, self._candidates(target, permutation), self._orders[0])
        for index, order in enumerate(self._orders[1:], start=1):
            self._place_in(index, order)

    def drop(self) -> None:
        """Needed on SQLite, where a temporary table lives as long as its connection."""
        self._sorter.drop(_DRAW, _KINDS, self._profiles.name, self._sites.name)

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
        return {str(kind): devices for kind, devices in rows}

    def make_up(self) -> list[Portion]:
        """How many devices of each stage and kind there are. One walk through the draw, which knows all that may be asked."""
        table = self.table.c
        by = (table.stage, table.choice, table.profile, table.site)
        return [Portion(*row) for row in self._session.execute(select(*by, func.count()).group_by(*by))]

    def _take(self, stage: int, condition: ColumnElement[bool]) -> int:
        taken = self._session.execute(
            update(self.table).where(self.table.c.stage.is_(None), condition).values(stage=stage)
        )
        return cast("CursorResult[Any]", taken).rowcount

    # --- sorting --------------------------------------------------------------------------------------------------

    def _candidates(self, target: ColumnElement[bool], permutation: Permutation) -> Subquery:
        factor, offset, modulus = (
            literal_column(str(each), BigInteger) for each in (permutation.factor, permutation.offset, MODULUS)
        )
        return (
            select(
                Device.id.label("device"),
                self._kinds.c.choice,
                self._kinds.c.profile_no,
                self._sites.c[NUMBER].label("site_no"),
                Device.criticality,
                ((Device.lot * factor + offset) % modulus).label("drawn"),
            )
            .select_from(Device)
            .join(self._kinds, self._of_kind())
            .join(self._sites, self._sites.c.site == func.coalesce(Device.site, ""))
            .where(Device.revoked_ms.is_(None), target, self._kinds.c.fits == 1)
            .subquery()
        )

    def _sort(self, into: Table, rows: FromClause, order: Order) -> int:
        """Fill `into` with `rows` in that order; how many there are. Sorted by its stratum a device's rank gives its share, and
        sorted by shares the strata lie spread over one another; the same first within each stratum."""
        extra = [Column("base", Integer)] if "base" in into.c else []
        source, share, made = rows, None, []
        for level, names in enumerate(dict.fromkeys([order.strata + order.within, order.strata])):
            if not names:
                continue
            strata = [_NUMBERS[name] for name in names]
            table = self._sorter.new(temporary(f"{_DRAW}_{level}", number(), *_carried(), *extra))
            keys = [*(rows.c[name] for name in strata), *self._keys(rows, share)]
            self._sorter.fill(table, _only(rows, source, [*_carried(), *extra]), keys)
            source, share = self._sorter.shares(f"{_DRAW}_sizes_{level}", table, strata)
            rows = table
            made += [f"{_DRAW}_{level}", f"{_DRAW}_sizes_{level}"]
        keys = [*(rows.c[name] for name in order.first), *self._keys(rows, share)]
        size = self._sorter.fill(into, self._final(into, rows, source), keys)
        self._sorter.drop(*made)
        return size

    def _final(self, into: Table, rows: FromClause, source: FromClause) -> Select[Any]:
        if into is not self.table:
            return select(rows.c.base).select_from(source)
        named = source.join(self._profiles, self._profiles.c[NUMBER] == rows.c.profile_no).join(
            self._sites, self._sites.c[NUMBER] == rows.c.site_no
        )
        return _only(rows, named, _carried()).add_columns(self._profiles.c.profile, self._sites.c.site)

    def _place_in(self, index: int, order: Order) -> None:
        """Note each device's place in another order."""
        rows = select(self.table.c[NUMBER].label("base"), *(self.table.c[column.name] for column in _carried()))
        places = self._sorter.new(temporary(f"{_DRAW}_places", number(), Column("base", Integer, index=True)))
        self._sort(places, rows.subquery(), order)
        place = select(places.c[NUMBER]).where(places.c.base == self.table.c[NUMBER]).scalar_subquery()
        self._session.execute(update(self.table).values({_place(index): place}))
        self._sorter.drop(places.name)
        self._sorter.analyze(self.table)

    def _keys(self, rows: FromClause, share: ColumnElement[int] | None) -> list[ColumnElement[Any]]:
        keys = [rows.c.drawn, self._sorter.bytewise(rows.c.device)]
        return keys if share is None else [share, *keys]

    def _of_kind(self) -> ColumnElement[bool]:
        return and_(
            self._kinds.c.facts_digest == Device.facts_digest,
            self._kinds.c.profile == func.coalesce(Device.profile, ""),
        )


def _carried() -> list[Column[Any]]:
    """What is sorted of each device."""
    return [
        Column("device", String(64), nullable=False),
        Column("choice", Integer, nullable=False),
        Column("profile_no", Integer, nullable=False),
        Column("site_no", Integer, nullable=False),
        Column("criticality", SmallInteger, nullable=False),
        Column("drawn", BigInteger, nullable=False),
    ]


def _only(rows: FromClause, source: FromClause, columns: Sequence[ColumnElement[Any]]) -> Select[Any]:
    return select(*(rows.c[str(column.name)] for column in columns)).select_from(source)


def _place(index: int) -> str:
    """The column with the devices' places in that order."""
    return NUMBER if index == 0 else f"place_{index}"
