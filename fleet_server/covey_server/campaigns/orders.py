"""The orders of a campaign: its version to devices, and devices back to their own previous builds. A bounded number at a time.

Each statement is about devices that still want it (planned ones get an order, those that have one do not), so that giving the
same orders twice gives nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec
from sqlalchemy import (
    BindParameter,
    Boolean,
    ColumnElement,
    CursorResult,
    Row,
    bindparam,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session, aliased

from covey_contract.conditions import Conditions
from covey_contract.lifecycle import BAD
from covey_contract.reasons import Reason
from covey_server.campaigns.following import off_since_ms
from covey_server.core.engine import Assign, DeviceState, Retry
from covey_server.core.part import ISSUED, ROLLBACK, ROLLOUT, SUPERSEDED_DETAIL
from covey_server.core.spec import CampaignSpec
from covey_server.db.tables import (
    AssignmentRow,
    Build,
    Campaign,
    CampaignChoice,
    CampaignDevice,
    Desired,
    Device,
    Reported,
)
from covey_server.db.tables.campaigns import AT_WORK, TO_GO
from covey_server.fleet.assignments import NewOrder, action_of, issue
from covey_server.fleet.moved import note_moved
from covey_server.fleet.sql import table_of

# A bound on the work of one look; the rest goes out in the looks that follow at once.
ORDERS_A_LOOK = 1_200

_BAD = frozenset(str(state) for state in BAD)
_HAS_ORDER = tuple(
    state.value for state in (DeviceState.ASSIGNED, DeviceState.ACTIVE, DeviceState.FAILED, DeviceState.RETRYING)
)


@dataclass(frozen=True)
class Given:
    """`devices` were taken up, `orders` went out, for builds of so many `bytes` in all, `waits` of the devices have to follow
    theirs before the campaign ends."""

    devices: int = 0
    orders: int = 0
    waits: int = 0
    bytes: int = 0


def assign(session: Session, campaign: Campaign, spec: CampaignSpec, what: Assign, limit: int, now_ms: int) -> Given:
    """The campaign's version to devices of a stage that have no order yet, or are to be tried again now. One that runs and wants
    that very build already counts as active at once; the others' present builds are noted, to go back to."""
    rows = _planned(session, campaign, what, limit, now_ms)
    probation, conditions = msgspec.to_builtins(spec.probation), _conditions(spec)
    given, parts, already, size = [], [], [], 0
    for row in rows:
        wanted = _wanted(row.wanted_id, row.wanted_state, row.wanted_why)
        previous = row.running_id if wanted in {None, row.build_id} else wanted
        part = {
            "b_device": row.device,
            "state": DeviceState.ASSIGNED.value,
            "previous_build_id": row.previous_build_id if row.attempts else previous,
            "order_kind": ROLLOUT,
            "heard": False,
            "waiting": False,
            "served": False,
            "attempts": row.attempts + 1,
            "begun_ms": None,
            "due_ms": None,
            "off_since_ms": off_since_ms(row),
            "detail": "",
            "assigned_ms": now_ms,
            "active_ms": None,
        }
        runs_it = row.active is not None and row.active == row.digest and wanted in {None, row.build_id}
        if runs_it and not row.attempts:
            already.append(row.device)
            part |= {
                "state": DeviceState.ACTIVE.value,
                "previous_build_id": row.build_id,
                "order_kind": None,
                "attempts": row.attempts,
                "detail": "runs this build already",
                "active_ms": now_ms,
            }
        else:
            size += row.size
            given.append(
                NewOrder(
                    device=row.device,
                    model=campaign.model,
                    version_id=campaign.version_id,
                    build_id=row.build_id,
                    kind=ROLLOUT,
                    campaign_id=campaign.id,
                    why=row.why,
                    probation=probation,
                    conditions=conditions,
                    ttl_ms=spec.assignment_ttl.ms,
                    answers=spec.served.requests if row.answered or spec.served.of == "all" else 0,
                )
            )
        parts.append(part)
    _issue(session, campaign.id, given, parts, now_ms)
    note_moved(session, ((device, campaign.model) for device in already))  # whether they have served is to be seen
    return Given(len(rows), len(given), bytes=size)


def restore(
    session: Session,
    campaign: Campaign,
    spec: CampaignSpec,
    stages: Sequence[int] | None,
    limit: int,
    now_ms: int,
) -> Given:
    """Devices of these stages (None: of all) that have the campaign's order back to their own previous builds (or to none, where they had none). Those that
    never heard of the order are re-assigned too, so that they catch up to the right build, but nobody waits for them."""
    rows = _ordered(session, campaign, stages, limit)
    given, parts, waits = [], [], 0
    for row in rows:
        part = {
            "b_device": row.device,
            "state": DeviceState.ROLLING_BACK.value,
            "order_kind": ROLLBACK,
            "heard": False,
            "waiting": False,
            "begun_ms": None,
            "due_ms": None,
            "off_since_ms": off_since_ms(row),
            "reason": row.reason,
            "detail": "",
            "restored_ms": None,
        }
        parts.append(part)
        if row.wanted is not None and row.wanted != row.assignment:
            # Whoever has a newer order of someone else's must not get one to go back.
            part |= {"state": DeviceState.SKIPPED.value, "order_kind": row.order_kind, "detail": SUPERSEDED_DETAIL}
            part["reason"] = str(Reason.SUPERSEDED)
            continue
        failed = row.state in {DeviceState.FAILED, DeviceState.RETRYING}
        if failed and row.order_state in _BAD and _serves_previous(row):
            part |= {"state": DeviceState.RESTORED_LOCALLY.value, "detail": "had gone back by itself"}
            part["restored_ms"] = max(row.told_ms or 0, campaign.halted_ms or 0)
        elif row.order_state == ISSUED and not row.online:
            part |= {"state": DeviceState.SKIPPED.value}
            part["detail"] = "never heard of it; its build before is assigned again"
        else:
            waits += 1
        given.append(
            NewOrder(
                device=row.device,
                model=campaign.model,
                version_id=row.previous_version_id or campaign.version_id,
                build_id=row.previous_build_id or row.build_id,
                kind=ROLLBACK,
                campaign_id=campaign.id,
                why={"reason": Reason.ROLLED_BACK.value, "campaign": campaign.name},
                # It ran this build before; another round of probation could only take it to the bad one again.
                probation={"seconds": 0.0},
                action="run" if row.previous_build_id is not None else "remove",
                ttl_ms=spec.assignment_ttl.ms,
            )
        )
    _issue(session, campaign.id, given, parts, now_ms)
    return Given(len(rows), len(given), waits)


def try_again(session: Session, campaign: Campaign) -> None:
    """Devices that could not go back before are to be told once more."""
    session.execute(
        update(CampaignDevice)
        .where(
            CampaignDevice.campaign_id == campaign.id,
            CampaignDevice.state == DeviceState.FAILED.value,
            CampaignDevice.order_kind == ROLLBACK,
        )
        .values(order_kind=ROLLOUT)
        .execution_options(synchronize_session=False)
    )


def time_out(session: Session, campaign: Campaign, begun_before_ms: int) -> int:
    """Devices that have been at work on their order since before then have failed; how many. One that waits for a condition of
    its order is not at work."""
    return _updated(
        session,
        campaign,
        (
            literal_column(AT_WORK, Boolean),
            CampaignDevice.begun_ms < begun_before_ms,
            CampaignDevice.waiting.is_(False),
        ),
        {"state": DeviceState.FAILED.value, "reason": str(Reason.TIMED_OUT), "detail": "took too long"},
    )


def retry(session: Session, campaign: Campaign, what: Retry) -> int:
    """Failed devices get another order when it is time; how many."""
    failed = CampaignDevice.state == DeviceState.FAILED.value
    wanted = [failed, CampaignDevice.order_kind == ROLLOUT]
    if what.attempts is not None:
        wanted.append(CampaignDevice.attempts == what.attempts)
    if what.stage is not None:
        wanted.append(CampaignDevice.stage == what.stage)
    if what.on is not None:
        its_order = AssignmentRow.id == CampaignDevice.assignment
        ended: list[ColumnElement[bool]] = [
            select(AssignmentRow.id).where(its_order, AssignmentRow.state.in_(what.on)).exists()
        ]
        if "timed_out" in what.on:
            ended.append(CampaignDevice.reason == str(Reason.TIMED_OUT))
        wanted.append(or_(*ended))
    return _updated(session, campaign, wanted, {"state": DeviceState.RETRYING.value, "due_ms": what.due_ms})


def _updated(
    session: Session, campaign: Campaign, conditions: Sequence[ColumnElement[bool]], values: dict[str, Any]
) -> int:
    done = session.execute(
        update(CampaignDevice)
        .where(CampaignDevice.campaign_id == campaign.id, *conditions)
        .values(values)
        .execution_options(synchronize_session=False)
    )
    return cast("CursorResult[Any]", done).rowcount


def _conditions(spec: CampaignSpec) -> dict[str, Any] | None:
    """What the device itself sees to before it changes what serves; None: nothing."""
    wanted, maintenance = spec.conditions, spec.maintenance
    conditions = Conditions(
        not_before_ms=None if wanted.not_before is None else wanted.not_before.ms,
        windows=maintenance.as_conditions() if maintenance is not None and maintenance.of_device else (),
        mains_power=wanted.mains_power,
        unlocked=wanted.unlocked,
        idle_s=wanted.idle.ms / 1000,
    )
    return None if conditions == Conditions() else msgspec.to_builtins(conditions)


def _planned(session: Session, campaign: Campaign, what: Assign, limit: int, now_ms: int) -> Sequence[Row[Any]]:
    may = [
        CampaignDevice.campaign_id == campaign.id,
        CampaignDevice.stage == what.stage,
        literal_column(TO_GO, Boolean),
        or_(CampaignDevice.due_ms.is_(None), CampaignDevice.due_ms <= now_ms),
    ]
    bounds = what.bounds
    if bounds is not None:
        limit = limit if bounds.limit is None else min(limit, bounds.limit)
        may.append(CampaignDevice.off_since_ms.is_(None))
        if bounds.zones is not None:
            may.append(CampaignDevice.timezone.in_(bounds.zones))
    part = select(CampaignDevice).where(*may).limit(limit).subquery()
    new, running = aliased(Build), aliased(Build)
    rows = session.execute(
        select(
            part.c.device,
            part.c.build_id,
            part.c.previous_build_id,
            part.c.attempts,
            CampaignChoice.why,
            Reported.active,
            Reported.answered,
            new.digest,
            new.size,
            running.id.label("running_id"),
            AssignmentRow.build_id.label("wanted_id"),
            AssignmentRow.state.label("wanted_state"),
            AssignmentRow.why.label("wanted_why"),
            Device.online,
            Device.last_seen_ms,
            Device.revoked_ms,
        )
        .select_from(part)
        .join(Device, Device.id == part.c.device)
        .join(new, new.id == part.c.build_id)
        .join(
            CampaignChoice,
            (CampaignChoice.campaign_id == campaign.id) & (CampaignChoice.number == part.c.choice),
        )
        .outerjoin(Reported, (Reported.device == part.c.device) & (Reported.model == campaign.model))
        .outerjoin(running, running.digest == Reported.active)
        .outerjoin(Desired, (Desired.device == part.c.device) & (Desired.model == campaign.model))
        .outerjoin(AssignmentRow, AssignmentRow.id == Desired.assignment)
    ).all()
    return sorted(rows, key=lambda row: str(row.device))


def _ordered(session: Session, campaign: Campaign, stages: Sequence[int] | None, limit: int) -> Sequence[Row[Any]]:
    wanted = [
        CampaignDevice.campaign_id == campaign.id,
        CampaignDevice.state.in_(_HAS_ORDER),
        CampaignDevice.order_kind == ROLLOUT,
    ]
    if stages is not None:
        wanted.append(CampaignDevice.stage.in_(stages))
    part = select(CampaignDevice).where(*wanted).limit(limit).subquery()
    previous = aliased(Build)
    rows = session.execute(
        select(
            part.c.device,
            part.c.state,
            part.c.reason,
            part.c.order_kind,
            part.c.assignment,
            part.c.build_id,
            part.c.previous_build_id,
            previous.version_id.label("previous_version_id"),
            previous.digest.label("previous"),
            AssignmentRow.state.label("order_state"),
            Desired.assignment.label("wanted"),
            Device.online,
            Device.last_seen_ms,
            Device.revoked_ms,
            Reported.device.label("reported"),
            Reported.active,
            Reported.candidate,
            Reported.updated_ms.label("told_ms"),
        )
        .select_from(part)
        .join(Device, Device.id == part.c.device)
        .join(AssignmentRow, AssignmentRow.id == part.c.assignment)
        .outerjoin(previous, previous.id == part.c.previous_build_id)
        .outerjoin(Desired, (Desired.device == part.c.device) & (Desired.model == campaign.model))
        .outerjoin(Reported, (Reported.device == part.c.device) & (Reported.model == campaign.model))
    ).all()
    return sorted(rows, key=lambda row: str(row.device))


def _serves_previous(row: Row[Any]) -> bool:
    """As `covey_server.core.part.serves_previous`."""
    return row.reported is not None and row.candidate is None and (row.active or "") == (row.previous or "")


def _wanted(build_id: int | None, state: str | None, why: dict[str, Any] | None) -> int | None:
    """The build that the device is meant to run before the campaign; None if there is none, or it could not take it."""
    if build_id is None or state in _BAD or action_of(why or {}) == "remove":
        return None
    return build_id


def _issue(
    session: Session, campaign_id: int, given: Sequence[NewOrder], parts: Sequence[dict[str, Any]], now_ms: int
) -> None:
    """Issue the orders and write the devices' parts, with the orders' ids."""
    ids = dict(zip((order.device for order in given), issue(session, given, now_ms), strict=True))
    columns = table_of(CampaignDevice).c
    # A device that gets no order keeps the one it has.
    for group in (
        [part for part in parts if part["b_device"] in ids],
        [part for part in parts if part["b_device"] not in ids],
    ):
        if not group:
            continue
        names = [name for name in group[0] if not name.startswith("b_")]
        values: dict[str, BindParameter[Any]] = {name: bindparam(name) for name in names}
        if group[0]["b_device"] in ids:
            values["assignment"] = bindparam("b_assignment")
        session.execute(
            update(table_of(CampaignDevice))
            .where(columns.campaign_id == campaign_id, columns.device == bindparam("b_device"))
            .values(values),
            [part | {"b_assignment": ids.get(part["b_device"])} for part in group],
        )
