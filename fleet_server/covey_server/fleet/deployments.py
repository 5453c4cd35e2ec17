"""Deployments as devices tell of them: `reports`, `assignments` and `reported`, brought up to date for a whole batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import and_, bindparam, delete, func, select, tuple_, update
from sqlalchemy.orm import Session

from covey_contract.lifecycle import FINAL
from covey_contract.messages import Hello, Report
from covey_server.db.tables import AssignmentRow, Desired, Reported, ReportRow
from covey_server.fleet.assignments import ISSUED, RENEW_MS
from covey_server.fleet.columns import clamp, clean
from covey_server.fleet.inbox import Incoming
from covey_server.fleet.moved import note_moved
from covey_server.fleet.progress import TOO_OLD, Slots, Verdict, hello_advances, judge, slots_after, slots_of
from covey_server.fleet.sql import chunks, insert_missing, stored_keys, table_of, upsert


@dataclass(frozen=True)
class Followed:
    """What came of a batch. All of its reports are to be acknowledged, those about another device's assignment too."""

    acknowledged: set[tuple[str, int]] = field(default_factory=set)  # (device, seq)
    duplicates: int = 0
    foreign: int = 0
    assignments: set[str] = field(default_factory=set)  # those that moved
    ended: list[tuple[str, str]] = field(default_factory=list)  # model and final state, of new reports


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
    reported_seq: int | None
    changed: bool = False


@dataclass
class _World:
    """What the database holds of the deployments that a batch is about, and what the batch makes of it."""

    slots: dict[tuple[str, str], Slots]  # by (device, model)
    deployments: dict[str, _Deployment]  # by assignment
    newest: dict[tuple[str, str], int]  # (device, assignment) -> highest seq of a report
    answered: dict[tuple[str, str], int]  # of `slots`, as they were loaded: requests that the active build has answered
    active: dict[tuple[str, str], str | None]  # of `slots`, as they were loaded
    changed: set[tuple[str, str]] = field(default_factory=set)  # keys of slots
    told: set[str] = field(default_factory=set)  # assignments about which there is a newer report
    rows: list[dict[str, Any]] = field(default_factory=list)  # new reports
    foreign: int = 0


def follow(session: Session, batch: Sequence[Incoming], now_ms: int) -> Followed:
    """Store the reports of known devices that were not stored before, and believe hellos and new reports in the order they came."""
    reports = [(incoming.device, incoming.message) for incoming in batch if isinstance(incoming.message, Report)]
    hellos = [(incoming.device, incoming.message) for incoming in batch if isinstance(incoming.message, Hello)]
    if not reports and not hellos:
        return Followed()
    keys = {(device, report.seq) for device, report in reports}
    world = _load(session, hellos, reports)
    stored = _stored(session, world, reports)
    for device, message, received_ms in batch:
        if isinstance(message, Hello):
            _hear_hello(world, device, message)
        elif isinstance(message, Report) and (device, message.seq) not in stored:
            stored.add((device, message.seq))
            _hear_report(world, device, message, received_ms, now_ms)
    insert_missing(session, table_of(ReportRow), world.rows)
    _write_slots(session, world, now_ms)
    assignments = _write_deployments(session, world, now_ms)
    moved = [deployment for deployment in world.deployments.values() if deployment.changed]
    note_moved(session, [*world.changed, *((deployment.device, deployment.model) for deployment in moved)])
    return Followed(
        acknowledged=keys,
        duplicates=len(reports) - len(world.rows) - world.foreign,
        foreign=world.foreign,
        assignments=assignments,
        ended=[(row["model"], row["state"]) for row in world.rows if row["state"] in FINAL],
    )


def _load(session: Session, hellos: Sequence[tuple[str, Hello]], reports: Sequence[tuple[str, Report]]) -> _World:
    devices = sorted({device for device, _ in [*hellos, *reports]})
    table = table_of(Reported)
    rows = {
        (row.device, row.model): row
        for part in chunks(devices)
        for row in session.execute(select(table).where(table.c.device.in_(part)))
    }
    slots = {
        key: Slots(row.active, row.previous, row.candidate, row.assignment, row.state, row.reason, row.detail)
        for key, row in rows.items()
    }
    named = {report.assignment for _, report in reports}
    named |= {status.assignment for _, hello in hellos for status in hello.models if status.assignment}
    named |= {held.assignment for held in slots.values() if held.assignment}
    order = AssignmentRow
    query = select(
        order.id,
        order.device,
        order.model,
        order.counter,
        order.state,
        order.expires_ms,
        order.reason,
        order.detail,
        order.progress,
        order.bytes_fetched,
        order.reported_seq,
    )
    deployments = {
        row[0]: _Deployment(*row[1:])
        for part in chunks(sorted(named))
        for row in session.execute(query.where(order.id.in_(part)))
    }
    newest = {
        (each.device, key): each.reported_seq for key, each in deployments.items() if each.reported_seq is not None
    }
    unknown = {(device, report.assignment) for device, report in reports if report.assignment not in deployments}
    for part in chunks(sorted(unknown)):
        seqs = (
            select(ReportRow.device, ReportRow.assignment, func.max(ReportRow.seq))
            .where(tuple_(ReportRow.device, ReportRow.assignment).in_(part))
            .group_by(ReportRow.device, ReportRow.assignment)
        )
        newest.update({(row[0], row[1]): row[2] for row in session.execute(seqs)})
    answered = {key: row.answered for key, row in rows.items()}
    return _World(slots, deployments, newest, answered, {key: row.active for key, row in rows.items()})


def _stored(session: Session, world: _World, reports: Sequence[tuple[str, Report]]) -> set[tuple[str, int]]:
    """Those that the database holds already. A report that is newer than all about its assignment is not asked for."""
    suspects = {
        (device, report.seq)
        for device, report in reports
        if report.assignment not in world.deployments
        or report.seq <= world.newest.get((device, report.assignment), report.seq - 1)
    }
    return stored_keys(session, ReportRow.device, ReportRow.seq, suspects)


def _hear_hello(world: _World, device: str, hello: Hello) -> None:
    """A hello lists all that the device holds; what it does not list is gone. One that is older than a report that was believed
    says nothing: a broker that was killed may deliver a hello once more, long after."""
    held = [key for key in world.slots if key[0] == device]
    believed = [world.newest.get((device, world.slots[key].assignment or ""), 0) for key in held]
    if hello.last_seq is not None and hello.last_seq < max(believed, default=0):
        return
    for key in held:
        del world.slots[key]
        world.changed.add(key)
    for status in hello.models:
        world.slots[device, status.model] = slots_of(status)
        world.changed.add((device, status.model))
        deployment = world.deployments.get(status.assignment or "")
        if deployment is None or deployment.device != device or status.state is None:
            continue
        if status.reason not in TOO_OLD and hello_advances(deployment.state, status.state):
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
        deployment.reported_seq = report.seq
        world.told.add(report.assignment)
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
    for key in sorted(world.changed & world.slots.keys()):
        (device, model), held = key, world.slots[key]
        rows.append(
            {
                "device": device,
                "model": model,
                "active": held.active,
                # Another build in its place has answered nothing yet.
                "answered": world.answered.get(key, 0) if world.active.get(key) == held.active else 0,
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


def note_answers(session: Session, answered: Mapping[tuple[str, str, str], int]) -> None:
    """Requests that builds have answered since they were last counted, by (device, model, build digest). Only those of the
    build that is active count; whoever has now answered as many as its order asks for has moved."""
    rows = [
        {"b_device": device, "b_model": model, "b_build": build, "b_more": more}
        for (device, model, build), more in sorted(answered.items())
        if more
    ]
    if not rows:
        return
    table, desired = table_of(Reported), table_of(Desired)
    session.execute(
        update(table)
        .where(
            table.c.device == bindparam("b_device"),
            table.c.model == bindparam("b_model"),
            table.c.active == bindparam("b_build"),
        )
        .values(answered=table.c.answered + bindparam("b_more")),
        rows,
    )
    served = []
    for part in chunks(sorted({device for device, _, _ in answered})):
        query = (
            select(table.c.device, table.c.model, table.c.active, table.c.answered, desired.c.answers)
            .join(desired, and_(desired.c.device == table.c.device, desired.c.model == table.c.model))
            .where(table.c.device.in_(part), desired.c.answers > 0, table.c.answered >= desired.c.answers)
        )
        for device, model, active, total, wanted in session.execute(query):
            if total - answered.get((device, model, active), 0) < wanted:
                served.append((device, model))
    note_moved(session, served)


def _write_deployments(session: Session, world: _World, now_ms: int) -> set[str]:
    rows = [
        {
            "b_id": key,
            "b_state": str(deployment.state),
            "b_reason": str(deployment.reason),
            "b_detail": clean(deployment.detail, 2000),
            "b_progress": None if deployment.progress is None else max(0.0, min(deployment.progress, 1.0)),
            "b_bytes": clamp(deployment.bytes_fetched),
            "b_due": _due_ms(deployment, now_ms),
            "b_seq": deployment.reported_seq,
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
                due_ms=bindparam("b_due"),
                reported_seq=bindparam("b_seq"),
                updated_ms=bindparam("b_now"),
            ),
            rows,
        )
    moved = {str(row["b_id"]) for row in rows}
    # Told of in a way that changes nothing, as an order is that has been superseded.
    quiet = [{"b_id": key, "b_seq": world.deployments[key].reported_seq} for key in sorted(world.told - moved)]
    if quiet:
        table = table_of(AssignmentRow)
        session.execute(
            update(table).where(table.c.id == bindparam("b_id")).values(reported_seq=bindparam("b_seq")), quiet
        )
    return moved


def _due_ms(deployment: _Deployment, now_ms: int) -> int | None:
    """An order that was refused for its age alone is to be issued anew; one that was heard of needs no sending."""
    if str(deployment.state) != ISSUED:
        return None
    return now_ms + (RENEW_MS if deployment.reason in TOO_OLD else 0)
