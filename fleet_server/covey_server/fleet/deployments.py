"""Deployments as devices tell of them: `reports`, `assignments` and `reported`, brought up to date for a whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import bindparam, delete, func, select, tuple_, update
from sqlalchemy.orm import Session

from covey_contract.messages import Hello, Report
from covey_contract.reasons import Reason
from covey_server.db.tables import AssignmentRow, Reported, ReportRow
from covey_server.fleet.assignments import ISSUED
from covey_server.fleet.columns import clamp, clean
from covey_server.fleet.inbox import Incoming
from covey_server.fleet.progress import Slots, Verdict, hello_advances, judge, slots_after, slots_of
from covey_server.fleet.sql import chunks, insert_missing, stored_keys, table_of, upsert


@dataclass(frozen=True)
class Followed:
    """What came of a batch. All of its reports are to be acknowledged, those about another device's assignment too."""

    acknowledged: set[tuple[str, int]] = field(default_factory=set)  # (device, seq)
    duplicates: int = 0
    foreign: int = 0
    assignments: set[str] = field(default_factory=set)  # those that moved


@dataclass
class _Deployment:
    """The part of an assignment that devices move."""

    device: str
    model: str
    counter: int
    state: str
    expires_ms: int
    reason: str
    detail: str
    progress: float | None
    bytes_fetched: int
    changed: bool = False


@dataclass
class _World:
    """What the database holds of the deployments that a batch is about, and what the batch makes of it."""

    slots: dict[tuple[str, str], Slots]  # by (device, model)
    deployments: dict[str, _Deployment]  # by assignment
    newest: dict[tuple[str, str], int]  # (device, assignment) -> highest seq of a report
    changed: set[tuple[str, str]] = field(default_factory=set)  # keys of slots
    rows: list[dict[str, Any]] = field(default_factory=list)  # new reports
    foreign: int = 0


def follow(session: Session, batch: Sequence[Incoming], now_ms: int) -> Followed:
    """Store the reports of known devices that were not stored before, and believe hellos and new reports in the order they came."""
    reports = [(incoming.device, incoming.message) for incoming in batch if isinstance(incoming.message, Report)]
    hellos = [(incoming.device, incoming.message) for incoming in batch if isinstance(incoming.message, Hello)]
    if not reports and not hellos:
        return Followed()
    keys = {(device, report.seq) for device, report in reports}
    stored = stored_keys(session, ReportRow.device, ReportRow.seq, keys)
    world = _load(
        session, hellos, [(device, report) for device, report in reports if (device, report.seq) not in stored]
    )
    for device, message, received_ms in batch:
        if isinstance(message, Hello):
            _hear_hello(world, device, message)
        elif isinstance(message, Report) and (device, message.seq) not in stored:
            stored.add((device, message.seq))
            _hear_report(world, device, message, received_ms, now_ms)
    insert_missing(session, table_of(ReportRow), world.rows)
    _write_slots(session, world, now_ms)
    return Followed(
        acknowledged=keys,
        duplicates=len(reports) - len(world.rows) - world.foreign,
        foreign=world.foreign,
        assignments=_write_deployments(session, world, now_ms),
    )


def _load(session: Session, hellos: Sequence[tuple[str, Hello]], reports: Sequence[tuple[str, Report]]) -> _World:
    devices = sorted({device for device, _ in [*hellos, *reports]})
    slots = {
        (row.device, row.model): Slots(
            row.active, row.previous, row.candidate, row.assignment, row.state, row.reason, row.detail
        )
        for part in chunks(devices)
        for row in session.scalars(select(Reported).where(Reported.device.in_(part)))
    }
    named = {report.assignment for _, report in reports}
    named |= {status.assignment for _, hello in hellos for status in hello.models if status.assignment}
    named |= {held.assignment for held in slots.values() if held.assignment}
    table = AssignmentRow
    query = select(
        table.id,
        table.device,
        table.model,
        table.counter,
        table.state,
        table.expires_ms,
        table.reason,
        table.detail,
        table.progress,
        table.bytes_fetched,
    )
    deployments = {
        row[0]: _Deployment(*row[1:])
        for part in chunks(sorted(named))
        for row in session.execute(query.where(table.id.in_(part)))
    }
    newest: dict[tuple[str, str], int] = {}
    for part in chunks(sorted({(device, report.assignment) for device, report in reports})):
        seqs = (
            select(ReportRow.device, ReportRow.assignment, func.max(ReportRow.seq))
            .where(tuple_(ReportRow.device, ReportRow.assignment).in_(part))
            .group_by(ReportRow.device, ReportRow.assignment)
        )
        newest.update({(row[0], row[1]): row[2] for row in session.execute(seqs)})
    return _World(slots, deployments, newest)


def _hear_hello(world: _World, device: str, hello: Hello) -> None:
    """A hello lists all that the device holds; what it does not list is gone."""
    for key in [key for key in world.slots if key[0] == device]:
        del world.slots[key]
        world.changed.add(key)
    for status in hello.models:
        world.slots[device, status.model] = slots_of(status)
        world.changed.add((device, status.model))
        deployment = world.deployments.get(status.assignment or "")
        if deployment is None or deployment.device != device or status.state is None:
            continue
        if status.reason is not Reason.OLD_COUNTER and hello_advances(deployment.state, status.state):
            deployment.state, deployment.reason, deployment.detail = status.state, status.reason, status.detail
            deployment.changed = True


def _hear_report(world: _World, device: str, report: Report, received_ms: int, now_ms: int) -> None:
    deployment = world.deployments.get(report.assignment)
    if deployment is not None and (deployment.device, deployment.model) != (device, report.model):
        world.foreign += 1
        return
    world.rows.append(_report_row(device, report, received_ms))
    key = (device, report.assignment)
    if report.seq <= world.newest.get(key, report.seq - 1):
        return  # late: a newer one has been believed
    world.newest[key] = report.seq
    if deployment is not None:
        _advance(deployment, report, now_ms)
    held = world.slots.get((device, report.model), Slots())
    current = world.deployments.get(held.assignment or "")
    counter = report.counter if deployment is None else deployment.counter
    if current is not None and counter < current.counter:
        return  # of an older assignment than the one the slots are about
    told = slots_after(held, report)
    if told != held:
        world.slots[device, report.model] = told
        world.changed.add((device, report.model))


def _advance(deployment: _Deployment, report: Report, now_ms: int) -> None:
    verdict = judge(deployment.state, deployment.expires_ms, report, now_ms)
    if verdict is Verdict.IGNORE:
        return
    deployment.state = ISSUED if verdict is Verdict.RENEW else report.state
    deployment.reason, deployment.detail = report.reason, report.detail
    deployment.progress, deployment.bytes_fetched = report.progress, report.bytes_fetched
    deployment.changed = True


def _report_row(device: str, report: Report, received_ms: int) -> dict[str, Any]:
    return {
        "device": device,
        "seq": report.seq,
        "at_ms": report.time_ms,
        "received_ms": received_ms,
        "assignment": clean(report.assignment, 256),
        "model": report.model,
        "version": report.version,
        "build": report.build,
        "state": str(report.state),
        "reason": str(report.reason),
        "detail": clean(report.detail, 2000),
    }


def _write_slots(session: Session, world: _World, now_ms: int) -> None:
    gone = sorted(world.changed - world.slots.keys())
    for part in chunks(gone):
        session.execute(
            delete(Reported)
            .where(tuple_(Reported.device, Reported.model).in_(part))
            .execution_options(synchronize_session=False)
        )
    rows = []
    for device, model in sorted(world.changed & world.slots.keys()):
        held = world.slots[device, model]
        rows.append(
            {
                "device": device,
                "model": model,
                "active": held.active,
                "previous": held.previous,
                "candidate": held.candidate,
                "assignment": None if held.assignment is None else clean(held.assignment, 64),
                "state": held.state,
                "reason": held.reason,
                "detail": clean(held.detail, 2000),
                "updated_ms": now_ms,
            }
        )
    upsert(session, table_of(Reported), rows)


def _write_deployments(session: Session, world: _World, now_ms: int) -> set[str]:
    rows = [
        {
            "b_id": key,
            "b_state": str(deployment.state),
            "b_reason": str(deployment.reason),
            "b_detail": clean(deployment.detail, 2000),
            "b_progress": None if deployment.progress is None else max(0.0, min(deployment.progress, 1.0)),
            "b_bytes": clamp(deployment.bytes_fetched),
            "b_now": now_ms,
        }
        for key, deployment in world.deployments.items()
        if deployment.changed
    ]
    if rows:
        table = table_of(AssignmentRow)
        session.execute(
            update(table)
            .where(table.c.id == bindparam("b_id"))
            .values(
                state=bindparam("b_state"),
                reason=bindparam("b_reason"),
                detail=bindparam("b_detail"),
                progress=bindparam("b_progress"),
                bytes_fetched=bindparam("b_bytes"),
                updated_ms=bindparam("b_now"),
            ),
            rows,
        )
    return {str(row["b_id"]) for row in rows}
