"""Following up what has moved: the notes of `covey_server.fleet.moved`, a bounded number at a time, to the parts in campaigns.

A look costs what has changed since the last one, never what the campaign is large.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Row,
    Select,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    literal,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session, aliased

from covey_server.core.engine import ACTIVE, CampaignState, DeviceState
from covey_server.core.part import NEVER_SEEN_MS, OrderSeen, Part, Seen, step
from covey_server.db.tables import (
    AssignmentRow,
    Build,
    Campaign,
    CampaignDevice,
    Desired,
    Device,
    MovedDevice,
    Reported,
)
from covey_server.fleet.assignments import counts_for
from covey_server.fleet.moved import ALL_MODELS
from covey_server.fleet.sql import chunks, table_of

NOTES_A_LOOK = 2_500

_ACTIVE = [state.value for state in ACTIVE]
_HAS_ORDER = [
    state.value for state in (DeviceState.ASSIGNED, DeviceState.ACTIVE, DeviceState.FAILED, DeviceState.RETRYING)
]
# A paced campaign gives orders to devices that are connected.
_TO_GO = [DeviceState.PLANNED.value, DeviceState.RETRYING.value]
# Devices of a campaign that has ended catch up; what becomes of the others is no longer its matter.
_CATCHES_UP = [DeviceState.ASSIGNED.value, DeviceState.ROLLING_BACK.value]


@dataclass(frozen=True)
class Followed:
    """`campaigns`: ids of those of which a part has changed; `more`: there may be notes left."""

    campaigns: frozenset[int]
    more: bool


def follow(session: Session, limit: int = NOTES_A_LOOK) -> Followed:
    """Take up at most `limit` notes, and bring the parts that they are about up to date."""
    notes = session.execute(
        select(MovedDevice.id, MovedDevice.device, MovedDevice.model)
        .order_by(MovedDevice.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    if not notes:
        return Followed(frozenset(), more=False)
    for part in chunks([note.id for note in notes], 5_000):
        session.execute(delete(MovedDevice).where(MovedDevice.id.in_(part)))
    models: defaultdict[str, set[str]] = defaultdict(set)
    for note in notes:
        models[note.device].add(note.model)
    campaigns = _campaigns_of(session, sorted(models))
    if campaigns:
        # In the order of their ids, before any of their parts, as whoever carries out a campaign's decisions does.
        session.execute(select(Campaign.id).where(Campaign.id.in_(campaigns)).order_by(Campaign.id).with_for_update())
    changed = [
        change
        for part in chunks(sorted(models) if campaigns else [])
        for change in _changes(session, part, models, campaigns)
    ]
    _write(session, changed)
    return Followed(frozenset(change["b_campaign"] for change in changed), more=len(notes) == limit)


def _open() -> Any:
    """A part whose campaign still wants to know."""
    wakes = or_(Campaign.state.in_(_ACTIVE), Campaign.is_open)
    desired = aliased(Desired)
    counts = exists().where(
        desired.device == CampaignDevice.device,
        desired.model == Campaign.model,
        desired.assignment == CampaignDevice.assignment,
    )
    return or_(
        counts,  # what it was left on is still what it should run
        and_(wakes, CampaignDevice.state.in_([*_HAS_ORDER, DeviceState.ROLLING_BACK.value])),
        and_(wakes, Campaign.paced, CampaignDevice.state.in_(_TO_GO)),
        and_(Campaign.state != CampaignState.PLANNED.value, CampaignDevice.state.in_(_CATCHES_UP)),
    )


def _campaigns_of(session: Session, devices: Sequence[str]) -> list[int]:
    """The campaigns that may have a part of these devices that `_open` lets through. Parts are found by campaign and device: an
    index by device alone would have to be kept at a random place for each of a million devices."""
    part = CampaignDevice
    late = exists().where(part.campaign_id == Campaign.id, part.state.in_(_CATCHES_UP))
    wakes = or_(
        Campaign.state.in_(_ACTIVE), Campaign.is_open, and_(Campaign.state != CampaignState.PLANNED.value, late)
    )
    ids = set(session.scalars(select(Campaign.id).where(wakes)))
    for chunk in chunks(devices):
        counts = select(AssignmentRow.campaign_id).join(Desired, counts_for())
        found = session.scalars(
            counts.where(Desired.device.in_(chunk), AssignmentRow.campaign_id.is_not(None)).distinct()
        )
        ids.update(each for each in found if each is not None)
    return sorted(ids)


def _changes(
    session: Session, devices: Collection[str], models: Mapping[str, Collection[str]], campaigns: Collection[int]
) -> list[dict[str, Any]]:
    changes = []
    its = (CampaignDevice.campaign_id.in_(campaigns), CampaignDevice.device.in_(devices))
    for row in session.execute(_parts().where(*its, _open())):
        if row.model not in models[row.device] and ALL_MODELS not in models[row.device]:
            continue
        before = Part(
            DeviceState(row.state),
            row.heard,
            row.waiting,
            row.served,
            row.begun_ms,
            row.off_since_ms,
            row.reason,
            row.detail,
            row.active_ms,
            row.restored_ms,
            row.drifted_ms,
        )
        after = step(before, seen_of(row))
        if after != before:
            changes.append(
                {
                    "b_campaign": row.campaign_id,
                    "b_device": row.device,
                    "state": after.state.value,
                    "heard": after.heard,
                    "waiting": after.waiting,
                    "begun_ms": after.begun_ms,
                    "served": after.served,
                    "off_since_ms": after.off_since_ms,
                    "reason": after.reason,
                    "detail": after.detail,
                    "active_ms": after.active_ms,
                    "restored_ms": after.restored_ms,
                    "drifted_ms": after.drifted_ms,
                }
            )
    return changes


def _parts() -> Select[*tuple[Any, ...]]:
    """Parts with all that `step` looks at."""
    part, order = CampaignDevice, AssignmentRow
    new, previous = aliased(Build), aliased(Build)
    return (
        select(
            part.campaign_id,
            part.device,
            part.state,
            part.heard,
            part.waiting,
            part.served,
            part.begun_ms,
            part.off_since_ms,
            part.reason,
            part.detail,
            part.active_ms,
            part.restored_ms,
            part.drifted_ms,
            Campaign.model,
            part.assignment,
            order.kind.label("order_kind"),
            order.state.label("order_state"),
            order.reason.label("order_reason"),
            order.detail.label("order_detail"),
            order.updated_ms.label("order_updated_ms"),
            Desired.assignment.label("wanted"),
            Desired.answers,
            new.digest.label("build"),
            previous.digest.label("previous"),
            Reported.device.label("reported"),
            Reported.active,
            Reported.answered,
            Reported.candidate,
            Reported.assignment.label("told_of"),
            Reported.updated_ms.label("told_ms"),
            Device.online,
            Device.last_seen_ms,
            Device.revoked_ms,
        )
        .select_from(part)
        .join(Campaign, Campaign.id == part.campaign_id)
        .join(Device, Device.id == part.device)
        .outerjoin(order, order.id == part.assignment)
        .outerjoin(new, new.id == part.build_id)
        .outerjoin(previous, previous.id == part.previous_build_id)
        .outerjoin(Desired, (Desired.device == part.device) & (Desired.model == Campaign.model))
        .outerjoin(Reported, (Reported.device == part.device) & (Reported.model == Campaign.model))
    )


def seen_of(row: Row[Any]) -> Seen:
    order = None
    if row.order_kind is not None:
        order = OrderSeen(row.order_kind, row.order_state, row.order_reason, row.order_detail, row.order_updated_ms)
    return Seen(
        order=order,
        assignment=row.assignment,
        wanted=row.wanted,
        answers=row.answers or 0,
        build=row.build,
        previous=row.previous,
        reported=row.reported is not None,
        active=row.active,
        answered=row.answered or 0,
        candidate=row.candidate,
        told_of=row.told_of,
        told_ms=row.told_ms or 0,
        off_since_ms=off_since_ms(row),
    )


def off_since_ms(row: Row[Any]) -> int | None:
    """When a device was last heard of, if it is off; None if it is connected. Of a row with `online`, `last_seen_ms` and
    `revoked_ms`."""
    if row.revoked_ms is not None:
        return NEVER_SEEN_MS
    return None if row.online else row.last_seen_ms or NEVER_SEEN_MS


def look_at_all(session: Session, campaign_id: int) -> None:
    """Who of a campaign's planned devices is connected, and in which time zone they are: until a campaign is started, nobody
    follows that."""
    part = CampaignDevice
    off = case(
        (Device.revoked_ms.is_not(None), literal(NEVER_SEEN_MS, BigInteger)),
        (Device.online, null()),
        else_=func.coalesce(Device.last_seen_ms, NEVER_SEEN_MS),
    )
    its = Device.id == part.device
    session.execute(
        update(part)
        .where(part.campaign_id == campaign_id, part.state == DeviceState.PLANNED.value)
        .values(
            off_since_ms=select(off).where(its).scalar_subquery(),
            timezone=select(Device.timezone).where(its).scalar_subquery(),
        )
        .execution_options(synchronize_session=False)
    )


def _write(session: Session, changes: Sequence[dict[str, Any]]) -> None:
    if not changes:
        return
    columns = table_of(CampaignDevice).c
    names = [name for name in changes[0] if not name.startswith("b_")]
    session.execute(
        update(table_of(CampaignDevice))
        .where(columns.campaign_id == bindparam("b_campaign"), columns.device == bindparam("b_device"))
        .values({name: bindparam(name) for name in names}),
        list(changes),
    )
