"""Devices: which there are, what they run, what they should run and why; labels, orders, commands, revocation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from covey_contract.messages import CommandKind
from covey_server import audit
from covey_server.api.paging import AfterName, Limit, Page
from covey_server.api.security import require
from covey_server.audit import Actor
from covey_server.campaigns.choice import choose, why
from covey_server.db.tables import Build
from covey_server.errors import Conflict, Forbidden, Invalid, NotFound, Unauthorized, Unavailable
from covey_server.fleet import enrolment
from covey_server.fleet.assignments import NewOrder, issue
from covey_server.fleet.certificates import CertificateState
from covey_server.fleet.directory import (
    DeviceFilter,
    device_detail,
    get_device,
    list_devices,
    reports_of,
    telemetry_of,
)
from covey_server.fleet.labels import check_labels, put_labels
from covey_server.fleet.service import FleetService
from covey_server.fleet.standing import Standing
from covey_server.fleet.views import DeviceDetail, DeviceView, ReportView, TelemetryView
from covey_server.problems import responses
from covey_server.registry.versions import get_version
from covey_server.services import Use

router = APIRouter(prefix="/api/v1", tags=["devices"], responses=responses(Unauthorized, Forbidden))

Viewer = Annotated[Actor, Depends(require("viewer"))]
Operator = Annotated[Actor, Depends(require("operator"))]


def _fleet(use: Use) -> FleetService:
    if use.fleet is None:
        raise Unavailable("the fleet service does not run")
    return use.fleet


Fleet = Annotated[FleetService, Depends(_fleet)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DevicePatch(Body):
    labels: dict[str, str | None] = Field(
        max_length=64, description="labels to set; null takes one away; others stay", examples=[{"line": "a"}]
    )


class ManualAssignment(Body):
    """What one device is to run, past any campaign."""

    model: str = Field(max_length=64)
    version: str = Field(max_length=64)
    target: str | None = Field(default=None, max_length=64, description="default: the build that fits it best")
    probation_s: float | None = Field(
        default=None,
        ge=0,
        le=3600,
        description="how long the device can go back by itself after the swap, in seconds; default: 30",
    )


class AssignmentView(BaseModel):
    assignment: str
    build_id: int
    target: str
    why: dict[str, Any]


class CommandBody(Body):
    kind: Literal["ping", "facts", "logs", "diagnostics", "renew"]
    lines: int = Field(default=200, ge=1, le=2000, description="of the log")


class ReplyView(BaseModel):
    time_ms: int
    reason: str
    detail: str
    text: str
    facts: dict[str, Any] | None


@router.get("/devices", summary="List devices by id", responses=responses(NotFound))
def get_devices(
    use: Use,
    _: Viewer,
    group: Annotated[str | None, Query(max_length=64)] = None,
    profile: Annotated[str | None, Query(max_length=64, description="`none`: without a profile")] = None,
    online: bool | None = None,
    model: Annotated[str | None, Query(max_length=64, description="has it or should have it")] = None,
    version: Annotated[str | None, Query(max_length=64, description="runs this version of `model`, or of any")] = None,
    standing: Annotated[Standing | None, Query(description="how it stands against its orders")] = None,
    revoked: bool | None = None,
    certificate: Annotated[CertificateState | None, Query(description="how near its certificate's end is")] = None,
    q: Annotated[str | None, Query(max_length=128, description="part of id, profile or board")] = None,
    limit: Limit = 100,
    after: AfterName = "",
) -> Page[DeviceView]:
    wanted = DeviceFilter(
        group=group,
        profile=profile,
        online=online,
        model=model,
        query=q,
        version=version,
        standing=standing,
        revoked=revoked,
        certificate=certificate,
        now_ms=use.clock(),
    )
    with use.database.reading() as session:
        found = list_devices(session, wanted, after, limit + 1)
    return Page(items=found[:limit], next=found[limit - 1].id if len(found) > limit else None)


@router.get("/devices/{device}", summary="Show a device", responses=responses(NotFound))
def show_device(use: Use, device: str, _: Viewer) -> DeviceDetail:
    with use.database.reading() as session:
        return device_detail(session, device)


@router.patch("/devices/{device}", summary="Change a device's labels", responses=responses(NotFound, Invalid))
def patch_device(use: Use, device: str, body: DevicePatch, actor: Operator) -> DeviceDetail:
    with use.database.session() as session:
        row = get_device(session, device)
        labels = {**row.labels, **body.labels}
        kept = {name: value for name, value in labels.items() if value is not None}
        check_labels(kept)
        put_labels(row, kept)
        audit.record(session, actor, "device.labels", device, {"labels": body.labels}, use.clock())
        session.flush()
        detail = device_detail(session, device)
    use.bus.publish("device", device)
    return detail


@router.post(
    "/devices/{device}/revoke",
    summary="Cut a device off for good",
    description="Its certificates are revoked and the broker cuts it off at once. Only a claim token bound to its id lets "
    "it in again. Revoking twice changes nothing.",
    responses=responses(NotFound),
)
def revoke_device(use: Use, fleet: Fleet, device: str, actor: Operator) -> DeviceDetail:
    now_ms = use.clock()
    with use.database.session() as session:
        if enrolment.revoke(session, device, now_ms):
            audit.record(session, actor, "device.revoke", device, {}, now_ms)
        session.flush()
        detail = device_detail(session, device)
    fleet.apply_revocations()
    use.bus.publish("device", device)
    return detail


@router.get("/devices/{device}/reports", summary="What a device told of its deployments", responses=responses(NotFound))
def device_reports(
    use: Use,
    device: str,
    _: Viewer,
    limit: Limit = 100,
    after: Annotated[int | None, Query(ge=-(1 << 62), le=1 << 62, description="`next` of the page before")] = None,
) -> Page[ReportView]:
    """Newest first."""
    with use.database.reading() as session:
        found = reports_of(session, device, after, limit + 1)
    return Page(items=found[:limit], next=str(found[limit - 1].seq) if len(found) > limit else None)


@router.get("/devices/{device}/telemetry", summary="What a device measured lately", responses=responses(NotFound))
def device_telemetry(
    use: Use, device: str, _: Viewer, minutes: Annotated[int, Query(ge=1, le=7 * 1440)] = 60
) -> Page[TelemetryView]:
    """Oldest first, at most the newest 5,000 windows."""
    with use.database.reading() as session:
        return Page(items=telemetry_of(session, device, use.clock() - minutes * 60_000))


@router.get(
    "/devices/{device}/why", summary="Which build a device gets, and why no other", responses=responses(NotFound)
)
def device_why(
    use: Use,
    device: str,
    _: Viewer,
    model: Annotated[str, Query(max_length=64)],
    version: Annotated[str | None, Query(max_length=64, description="default: the newest")] = None,
) -> dict[str, Any]:
    with use.database.reading() as session:
        get_device(session, device)
        return why(session, device, model, version)


@router.post(
    "/devices/{device}/assignments",
    summary="Give one device one version",
    status_code=201,
    responses=responses(NotFound, Conflict, Invalid),
)
def assign(use: Use, fleet: Fleet, device: str, body: ManualAssignment, actor: Operator) -> AssignmentView:
    now_ms = use.clock()
    with use.database.session() as session:
        if get_device(session, device).revoked_ms is not None:
            raise Conflict(f"{device} is revoked", code="device_revoked")
        version = get_version(session, body.model, body.version)
        build_id, target, reasons = _build_for(session, device, version.id, body.target)
        order = NewOrder(
            device=device,
            model=body.model,
            version_id=version.id,
            build_id=build_id,
            kind="manual",
            why={**reasons, "by": actor.name},
            probation={} if body.probation_s is None else {"seconds": body.probation_s},
            ttl_ms=use.settings.assignment_s * 1000,
        )
        assignment = issue(session, [order], now_ms)[0]
        detail = {"model": body.model, "version": body.version, "target": target, "assignment": assignment}
        audit.record(session, actor, "device.assign", device, detail, now_ms)
    fleet.wake()
    use.bus.publish("assignment", assignment)
    return AssignmentView(assignment=assignment, build_id=build_id, target=target, why=reasons)


@router.post(
    "/devices/{device}/commands",
    summary="Ask a device something and wait for its reply",
    responses=responses(NotFound, Conflict, Unavailable),
)
def command(use: Use, fleet: Fleet, device: str, body: CommandBody, actor: Operator) -> ReplyView:
    with use.database.session() as session:
        row = get_device(session, device)
        if row.revoked_ms is not None or not row.online:
            raise Conflict(f"{device} is not online", code="device_offline")
        audit.record(session, actor, "device.command", device, {"kind": body.kind}, use.clock())
    reply = fleet.ask(device, CommandKind(body.kind), body.lines)
    if reply is None:
        raise Unavailable(f"{device} did not reply within {use.settings.command_wait_s:g} s", code="no_reply")
    return ReplyView(
        time_ms=reply.time_ms,
        reason=reply.reason,
        detail=reply.detail,
        text=reply.text,
        facts=None if reply.facts is None else msgspec.to_builtins(reply.facts),
    )


def _build_for(session: Session, device: str, version_id: int, target: str | None) -> tuple[int, str, dict[str, Any]]:
    """The build that the operator named, or the one that fits best. Raises `Conflict` if there is none."""
    if target is not None:
        build = session.scalar(select(Build).where(Build.version_id == version_id, Build.target == target))
        if build is None:
            raise NotFound(f"this version has no build for {target[:64]!r}")
        if build.digest is None:
            raise Conflict(f"the build for {target} is {build.state}", code="not_built")
        return build.id, target, {"reason": "chosen by an operator"}
    chosen = choose(session, version_id, device, "rank")
    if chosen.build_id is None or chosen.target is None:
        raise Conflict("no build of this version fits the device", code="no_build_fits", why=chosen.why)
    return chosen.build_id, chosen.target, chosen.why
