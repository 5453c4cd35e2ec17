"""Whole ticks of the campaign service over the fleet, in the worst cases: all orders out and thousands of devices heard of since the
last tick; a full batch of orders to be given; a full batch of devices to be sent back.

What devices say comes in by the server's own store, as it does from the broker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, FromClause, Table, bindparam, func, insert, literal, null, select, update
from sqlalchemy.orm import Session

from benchmarks.scale import million
from benchmarks.scale.planning import OPERATOR
from covey_contract.lifecycle import State
from covey_contract.messages import Report, Status
from covey_contract.reasons import Reason
from covey_server.bus import Bus
from covey_server.campaigns import commands
from covey_server.campaigns.orders import ORDERS_A_LOOK
from covey_server.campaigns.service import CampaignService
from covey_server.core.engine import Action, CampaignState, DeviceState
from covey_server.db.engine import Database
from covey_server.db.tables import (
    AssignmentRow,
    Build,
    Campaign,
    CampaignDevice,
    Desired,
    MovedDevice,
    Reported,
    Version,
)
from covey_server.fleet.inbox import Incoming
from covey_server.fleet.ingest import BATCH
from covey_server.fleet.records import store
from covey_server.fleet.sql import chunks, table_of

CHANGED = 5_000  # devices that are heard of between two ticks
_ROUNDS = 3


def measure(database: Database, campaign: str) -> dict[str, Any]:
    """The longest tick of each case, in seconds, on a campaign that has been planned; `worst_s` is the longest of all."""
    _everything_out(database, campaign)
    site = _Site(database, campaign)
    cases: dict[str, list[float]] = {
        "quiet": [site.tick() for _ in range(_ROUNDS)],
        "heard": [site.tick(site.hear) for _ in range(_ROUNDS)],
        "orders": [site.tick(site.plan_again) for _ in range(_ROUNDS)],
    }
    began = time.perf_counter()
    with database.session() as session:
        commands.act(session, campaign, Action.ROLLBACK, OPERATOR, site.now_ms)
    command_s = time.perf_counter() - began
    cases["back"] = [site.tick() for _ in range(_ROUNDS)]
    site.check()
    return {
        **{f"{name}_s": round(max(times), 3) for name, times in cases.items()},
        "rollback_command_s": round(command_s, 3),
        "worst_s": round(max(max(times) for times in cases.values()), 3),
    }


class _Site:
    """The service, its clock, and devices that say what they are asked to."""

    def __init__(self, database: Database, campaign: str) -> None:
        self._database, self._campaign = database, campaign
        self.now_ms = million.NOW_MS + 60_000
        self._service = CampaignService(database, lambda: self.now_ms, Bus(), lambda: None)
        self._heard_of = 0
        self._seq = 0

    def tick(self, before: Callable[[], None] | None = None) -> float:
        """Seconds of one tick, a second later than the last, after something has happened."""
        self.now_ms += 1000
        if before is not None:
            before()
        began = time.perf_counter()
        self._service.tick()
        return time.perf_counter() - began

    def hear(self) -> None:
        """The next devices: three in five swap, one fails, one is switched off."""
        with self._database.reading() as session:
            rows = session.execute(
                select(CampaignDevice.device, CampaignDevice.assignment, Build.digest, Version.name)
                .join(Build, Build.id == CampaignDevice.build_id)
                .join(Version, Version.id == Build.version_id)
                .where(CampaignDevice.state == DeviceState.ASSIGNED.value)
                .order_by(CampaignDevice.device)
                .offset(self._heard_of)
                .limit(CHANGED)
            ).all()
        self._heard_of += CHANGED // 5  # those that were switched off stay assigned
        said = [
            self._said(index, device, order, build, version)
            for index, (device, order, build, version) in enumerate(rows)
        ]
        for part in chunks(said, BATCH):
            with self._database.session() as session:
                store(session, part, self.now_ms)

    def _said(self, index: int, device: str, assignment: str | None, digest: str | None, version: str) -> Incoming:
        if index % 5 == 4:
            return Incoming(device, Status(boot_id="b", online=False), self.now_ms)
        self._seq += 1
        report = Report(
            seq=self._seq,
            time_ms=self.now_ms,
            assignment=assignment or "",
            counter=1,
            model=million.MODEL,
            version=version,
            build=digest or "",
            state=State.FAILED if index % 5 == 3 else State.ACTIVE,
            reason=Reason.LOAD_FAILED if index % 5 == 3 else Reason.NONE,
        )
        return Incoming(device, report, self.now_ms)

    def plan_again(self) -> None:
        """A full batch of devices that have no order yet."""
        with self._database.session() as session:
            some = (
                select(CampaignDevice.device)
                .where(CampaignDevice.state == DeviceState.ASSIGNED.value)
                .limit(ORDERS_A_LOOK)
                .scalar_subquery()
            )
            session.execute(
                update(CampaignDevice)
                .where(CampaignDevice.device.in_(some))
                .values(state=DeviceState.PLANNED.value, assignment=None, order_kind=None, heard=False, attempts=0)
                .execution_options(synchronize_session=False)
            )

    def check(self) -> None:
        """That the ticks did what they were timed for."""
        with self._database.reading() as session:
            states = dict(
                session.execute(select(CampaignDevice.state, func.count()).group_by(CampaignDevice.state))
                .tuples()
                .all()
            )
            left = session.scalar(select(func.count()).select_from(MovedDevice)) or 0
        back = states.get("rolling_back", 0) + states.get("restored_locally", 0)
        assert back > 0, states  # noqa: S101 - a benchmark that measured nothing must not end well
        # While orders are given out, what has moved waits for some looks.
        assert left <= 4 * _ROUNDS * ORDERS_A_LOOK, left  # noqa: S101 - as above


def _everything_out(database: Database, name: str) -> None:
    """The campaign is in its last stage and every device of it has its order; half of them have begun."""
    now_ms = million.NOW_MS
    with database.session() as session:
        campaign = session.scalars(select(Campaign).where(Campaign.name == name)).one()
        commands.act(session, name, Action.START, OPERATOR, now_ms)
        campaign.state, campaign.stage = CampaignState.RUNNING.value, len(campaign.spec["stages"]) - 1
        campaign.stage_started_ms = now_ms
        session.flush()
        previous = _previous_builds(session)
        part = table_of(CampaignDevice)
        goes = part.c.state == DeviceState.PLANNED.value
        order = literal("a-").concat(part.c.device)
        fetching = part.c.device.like("%5") | part.c.device.like("%0")
        _fill(
            session,
            table_of(AssignmentRow),
            part,
            goes,
            id=order,
            device=part.c.device,
            counter=literal(1),
            model=literal(million.MODEL),
            version_id=literal(campaign.version_id),
            build_id=part.c.build_id,
            kind=literal("rollout"),
            campaign_id=literal(campaign.id),
            issued_ms=literal(now_ms),
            expires_ms=literal(now_ms + 7 * 86_400_000),
            sent_ms=literal(now_ms),
            due_ms=literal(now_ms + 600_000),
            state=literal("issued"),
            updated_ms=literal(now_ms),
        )
        _fill(
            session,
            table_of(Desired),
            part,
            goes,
            device=part.c.device,
            model=literal(million.MODEL),
            assignment=order,
        )
        session.execute(
            update(part)
            .where(goes)
            .values(
                state=DeviceState.ASSIGNED.value,
                assignment=order,
                order_kind="rollout",
                heard=fetching,
                attempts=1,
                assigned_ms=now_ms,
                previous_build_id=part.c.build_id - bindparam("earlier", len(million.TARGETS)),
            )
        )
        session.execute(
            update(AssignmentRow)
            .where(AssignmentRow.device.like("%5") | AssignmentRow.device.like("%0"))
            .values(state=str(State.FETCHING), due_ms=None)
            .execution_options(synchronize_session=False)
        )
        builds = table_of(Build)
        _fill(
            session,
            table_of(Reported),
            part.join(builds, builds.c.id == part.c.previous_build_id),
            part.c.previous_build_id.in_(previous),
            device=part.c.device,
            model=literal(million.MODEL),
            active=builds.c.digest,
            updated_ms=literal(now_ms),
        )
    million.settle(database)


def _previous_builds(session: Session) -> Sequence[int]:
    query = select(Build.id).join(Version, Version.id == Build.version_id).where(Version.name == "1.0")
    return session.scalars(query).all()


def _fill(
    session: Session, table: Table, source: FromClause, where: ColumnElement[bool], **given: ColumnElement[Any]
) -> None:
    """One row for each row of `source`; columns that are not given get their defaults."""
    values: Mapping[str, ColumnElement[Any]] = {
        column.name: given.get(column.name, _default(column)) for column in table.c
    }
    rows = select(*(value.label(name) for name, value in values.items())).select_from(source).where(where)
    session.execute(insert(table).from_select(list(values), rows, include_defaults=False))


def _default(column: Any) -> ColumnElement[Any]:
    if column.default is None or column.nullable:
        return null()
    return literal({} if column.default.is_callable else column.default.arg, column.type)
