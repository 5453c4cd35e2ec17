"""Issuing assignments: new rows with higher counters, the older ones superseded, `desired` moved. Set-based: a few statements
for any number of devices.

Invariants: a device's counters never repeat and never go back; of each device and model exactly one assignment is desired.
"""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from sqlalchemy import ColumnElement, and_, bindparam, delete, insert, select, update
from sqlalchemy.orm import Session

from covey_contract.lifecycle import FINAL
from covey_contract.messages import Action, Probation
from covey_contract.reasons import Reason
from covey_server.db.tables import AssignmentRow, CampaignDevice, Desired, Device
from covey_server.errors import NotFound
from covey_server.fleet.moved import note_moved
from covey_server.fleet.sql import chunks, lock_devices, table_of

ISSUED = "issued"
SUPERSEDED = "superseded"
DEFAULT_TTL_MS = 7 * 24 * 3600 * 1000
# An order that expires before it can arrive would be issued anew for ever.
_MIN_RENEWED_TTL_MS = 60_000
# A device that refuses an order as old gets a new one, not more often than this.
RENEW_MS = 5_000
FINISHED = [str(state) for state in FINAL]

Kind = Literal["rollout", "rollback", "manual"]


@dataclass(frozen=True)
class NewOrder:
    """One device is to run (or to remove) one build. `why` is kept with it, for people."""

    device: str
    model: str
    version_id: int
    build_id: int
    kind: Kind
    campaign_id: int | None = None
    why: dict[str, Any] = field(default_factory=dict)
    probation: dict[str, Any] = field(default_factory=dict)
    action: Literal["run", "remove"] = "run"
    ttl_ms: int = DEFAULT_TTL_MS
    conditions: dict[str, Any] | None = None  # `covey_contract.conditions.Conditions`; None: at once
    answers: int = 0  # requests that the build must answer before the device counts as served


def issue(session: Session, orders: Sequence[NewOrder], now_ms: int) -> list[str]:
    """The ids of the new assignments, in the order of `orders`.

    Raises `NotFound` for an unknown device, `ValueError` for two orders for one device and model, and
    `msgspec.ValidationError` for a probation that is none. The caller commits, then wakes the fleet service.
    """
    if len({(order.device, order.model) for order in orders}) != len(orders):
        raise ValueError("two orders for the same device and model")
    if not orders:
        return []
    for order in orders:
        msgspec.convert(order.probation, Probation)
    counters = _take_counters(session, [order.device for order in orders])
    _supersede(session, orders, now_ms)
    rows = [_row(order, counter, now_ms) for order, counter in zip(orders, counters, strict=True)]
    session.execute(insert(table_of(AssignmentRow)), rows)
    session.execute(
        insert(table_of(Desired)),
        [
            {"device": row["device"], "model": row["model"], "assignment": row["id"], "answers": order.answers}
            for row, order in zip(rows, orders, strict=True)
        ],
    )
    note_moved(session, ((order.device, order.model) for order in orders))
    return [row["id"] for row in rows]


def counts_for() -> ColumnElement[bool]:
    """That a row of `Desired` names a row of `AssignmentRow`; by the former's key, so that each finds the other at once."""
    return and_(
        Desired.device == AssignmentRow.device,
        Desired.model == AssignmentRow.model,
        Desired.assignment == AssignmentRow.id,
    )


def reissue(session: Session, ids: Sequence[str], now_ms: int) -> list[str]:
    """The same decisions again with new counters and times, for orders that were never followed. Campaigns follow along."""
    rows = [
        row for part in chunks(ids) for row in session.scalars(select(AssignmentRow).where(AssignmentRow.id.in_(part)))
    ]
    answers = {
        row.assignment: row.answers
        for part in chunks(ids)
        for row in session.execute(
            select(Desired.assignment, Desired.answers)
            .join(AssignmentRow, counts_for())
            .where(AssignmentRow.id.in_(part))
        )
    }
    orders = [
        NewOrder(
            device=row.device,
            model=row.model,
            version_id=row.version_id,
            build_id=row.build_id,
            kind=row.kind,  # type: ignore[arg-type]  # the column holds what `issue` put there
            campaign_id=row.campaign_id,
            why=row.why,
            probation=row.probation,
            action="remove" if action_of(row.why) is Action.REMOVE else "run",
            ttl_ms=max(row.expires_ms - row.issued_ms, _MIN_RENEWED_TTL_MS),
            conditions=row.conditions,
            answers=answers.get(row.id, 0),
        )
        for row in rows
    ]
    renewed = issue(session, orders, now_ms)
    moved = [
        {"b_campaign": row.campaign_id, "b_device": row.device, "b_old": row.id, "b_new": new}
        for row, new in zip(rows, renewed, strict=True)
        if row.campaign_id is not None
    ]
    if moved:
        part_of = table_of(CampaignDevice).c
        session.execute(
            update(table_of(CampaignDevice))
            .where(
                part_of.campaign_id == bindparam("b_campaign"),
                part_of.device == bindparam("b_device"),
                part_of.assignment == bindparam("b_old"),
            )
            .values(assignment=bindparam("b_new"), heard=False),
            moved,
        )
    return renewed


def send_again(session: Session, devices: Sequence[str], now_ms: int) -> None:
    """Orders that were put aside because their devices were off are due now."""
    for part in chunks(devices):
        session.execute(
            update(AssignmentRow)
            .where(AssignmentRow.device.in_(part), AssignmentRow.state == ISSUED, AssignmentRow.due_ms.is_(None))
            .values(due_ms=now_ms)
            .execution_options(synchronize_session=False)
        )


def action_of(why: dict[str, Any]) -> Action:
    return Action.REMOVE if why.get("action") == Action.REMOVE else Action.RUN


def _row(order: NewOrder, counter: int, now_ms: int) -> dict[str, Any]:
    return {
        "id": uuid.uuid4().hex,
        "device": order.device,
        "counter": counter,
        "model": order.model,
        "version_id": order.version_id,
        "build_id": order.build_id,
        "kind": order.kind,
        "campaign_id": order.campaign_id,
        "why": {**order.why, "action": order.action},
        "probation": order.probation,
        "conditions": order.conditions,
        "issued_ms": now_ms,
        "expires_ms": now_ms + order.ttl_ms,
        "sent_ms": None,
        "due_ms": now_ms,
        "reported_seq": None,
        "state": ISSUED,
        "reason": str(Reason.NONE),
        "detail": "",
        "progress": None,
        "bytes_fetched": 0,
        "updated_ms": now_ms,
    }


def _take_counters(session: Session, devices: Sequence[str]) -> list[int]:
    """One new counter for each entry of `devices`, in order."""
    wanted = Counter(devices)
    held: dict[str, int] = {}
    lock_devices(session, wanted)
    for part in chunks(sorted(wanted)):
        rows = session.execute(select(Device.id, Device.counter).where(Device.id.in_(part)))
        held.update((row.id, row.counter) for row in rows)
    missing = sorted(set(wanted) - set(held))
    if missing:
        raise NotFound(f"no device is called {missing[0]!r}")
    by_number: defaultdict[int, list[str]] = defaultdict(list)
    for device, number in wanted.items():
        by_number[number].append(device)
    for number, group in by_number.items():
        for part in chunks(group):
            session.execute(
                update(Device)
                .where(Device.id.in_(part))
                .values(counter=Device.counter + number)
                .execution_options(synchronize_session=False)
            )
    taken = []
    for device in devices:
        held[device] += 1
        taken.append(held[device])
    return taken


def _supersede(session: Session, orders: Sequence[NewOrder], now_ms: int) -> None:
    by_model: defaultdict[str, list[str]] = defaultdict(list)
    for order in orders:
        by_model[order.model].append(order.device)
    for model, devices in by_model.items():
        for part in chunks(devices):
            older = select(Desired.assignment).where(Desired.model == model, Desired.device.in_(part))
            session.execute(
                update(AssignmentRow)
                .where(AssignmentRow.id.in_(older), AssignmentRow.state.not_in(FINISHED))
                .values(state=SUPERSEDED, reason=str(Reason.SUPERSEDED), due_ms=None, updated_ms=now_ms)
                .execution_options(synchronize_session=False)
            )
            session.execute(
                delete(Desired)
                .where(Desired.model == model, Desired.device.in_(part))
                .execution_options(synchronize_session=False)
            )
