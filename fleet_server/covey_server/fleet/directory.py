"""Reading the fleet: devices, what they run and what they should, their reports and telemetry."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session

from covey_contract.histogram import Histogram
from covey_contract.messages import Captured
from covey_server.db.tables import (
    AssignmentRow,
    Build,
    Campaign,
    Certificate,
    Desired,
    Device,
    RenewalRequest,
    Reported,
    ReportRow,
    TelemetryRow,
    Version,
)
from covey_server.errors import NotFound
from covey_server.fleet import certificates
from covey_server.fleet.assignments import action_of
from covey_server.fleet.certificates import CertificateState
from covey_server.fleet.groups import groups_of, members_query
from covey_server.fleet.sql import chunks
from covey_server.fleet.standing import Standing, condition
from covey_server.fleet.views import (
    BuildRef,
    CaptureView,
    CertificateView,
    DesiredView,
    DeviceDetail,
    DeviceView,
    LatencyView,
    ModelOnDevice,
    RenewalView,
    ReportView,
    TelemetryView,
)

NO_PROFILE = "none"
_MAX_WINDOWS = 5000


@dataclass(frozen=True, kw_only=True)
class DeviceFilter:
    """All that is given must hold. `profile` "none": no profile matches. `query`: part of id, profile or board. `version`: runs
    this version of `model`, or of any model. `standing`: see `covey_server.fleet.standing`."""

    group: str | None = None
    profile: str | None = None
    online: bool | None = None
    model: str | None = None
    query: str | None = None
    version: str | None = None
    standing: Standing | None = None
    revoked: bool | None = None
    certificate: CertificateState | None = None
    now_ms: int = 0  # for `certificate`


def get_device(session: Session, device: str) -> Device:
    found = session.get(Device, device)
    if found is None:
        raise NotFound(f"no device is called {device[:64]!r}")
    return found


def list_devices(session: Session, wanted: DeviceFilter, after: str, limit: int) -> list[DeviceView]:
    """At most `limit` devices in the order of their ids, beginning after `after`. Raises `NotFound` for an unknown group."""
    query = select(Device).where(Device.id > after, *_conditions(session, wanted)).order_by(Device.id).limit(limit)
    devices = session.scalars(query).all()
    models = models_on(session, [device.id for device in devices])
    return [DeviceView(**_summary(device), models=models[device.id]) for device in devices]


def count_devices(session: Session, wanted: DeviceFilter) -> int:
    """How many `list_devices` would list in all. Raises `NotFound` for an unknown group."""
    return session.scalar(select(func.count()).select_from(Device).where(*_conditions(session, wanted))) or 0


def _conditions(session: Session, wanted: DeviceFilter) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if wanted.group is not None:
        found.append(Device.id.in_(members_query(session, wanted.group)))
    if wanted.profile is not None:
        none = wanted.profile == NO_PROFILE
        found.append(Device.profile.is_(None) if none else Device.profile == wanted.profile)
    if wanted.online is not None:
        found.append(Device.online.is_(wanted.online))
    if wanted.revoked is not None:
        found.append(Device.revoked_ms.is_not(None) if wanted.revoked else Device.revoked_ms.is_(None))
    if wanted.version is not None:
        running = select(Reported.device).join(Build, Build.digest == Reported.active)
        running = running.join(Version, Version.id == Build.version_id).where(Version.name == wanted.version)
        if wanted.model is not None:
            running = running.where(Version.model == wanted.model)
        found.append(Device.id.in_(running))
    elif wanted.model is not None:
        having = select(Reported.device).where(Reported.model == wanted.model)
        ordered = select(Desired.device).where(Desired.model == wanted.model)
        found.append(or_(Device.id.in_(having), Device.id.in_(ordered)))
    if wanted.standing is not None:
        # A device that was cut off is on its way nowhere.
        found.append(and_(Device.revoked_ms.is_(None), condition(wanted.standing)))
    if wanted.certificate is not None:
        found += [Device.revoked_ms.is_(None), certificates.condition(wanted.certificate, wanted.now_ms)]
    if wanted.query:
        board = Device.facts["board"].as_string()
        columns = (Device.id, Device.profile, board)
        found.append(or_(*(column.contains(wanted.query, autoescape=True) for column in columns)))
    return found


def device_detail(session: Session, device: str) -> DeviceDetail:
    """Everything that an operator wants to know of one device. Raises `NotFound`."""
    row = get_device(session, device)
    given = session.scalars(
        select(Certificate).where(Certificate.device == device).order_by(Certificate.issued_ms.desc()).limit(20)
    )
    return DeviceDetail(
        **_summary(row),
        models=models_on(session, [device])[device],
        profile_reason=row.profile_reason,
        facts=row.facts,
        facts_digest=row.facts_digest,
        groups=groups_of(session, device),
        boot_id=row.boot_id,
        counter=row.counter,
        resources=row.resources,
        capture=_capture(row.resources),
        certificates=[
            CertificateView(
                serial=one.serial, issued_ms=one.issued_ms, not_after_ms=one.not_after_ms, revoked_ms=one.revoked_ms
            )
            for one in given
        ],
        renewals=[
            renewal_view(one)
            for one in session.scalars(
                select(RenewalRequest).where(RenewalRequest.device == device).order_by(RenewalRequest.id)
            )
        ],
    )


def renewal_view(request: RenewalRequest) -> RenewalView:
    return RenewalView(
        device=request.device,
        key=request.key,
        origin=request.origin,
        asked_ms=request.asked_ms,
        seen_ms=request.seen_ms,
        ended_ms=request.ended_ms,
        state=request.state,
        decided_ms=request.decided_ms,
        decided_by=request.decided_by,
    )


def models_on(session: Session, devices: Sequence[str]) -> dict[str, list[ModelOnDevice]]:
    """For each of the devices, its models in order of their names."""
    held: dict[tuple[str, str], Reported] = {}
    wanted: dict[tuple[str, str], DesiredView] = {}
    for part in chunks(devices):
        for row in session.scalars(select(Reported).where(Reported.device.in_(part))):
            held[row.device, row.model] = row
        wanted.update(_desired(session, part))
    builds = _builds(session, held.values())
    found: defaultdict[str, list[ModelOnDevice]] = defaultdict(list)
    for device, model in sorted(held.keys() | wanted.keys()):
        said = held.get((device, model))
        desired = wanted.get((device, model))
        if said is None:
            found[device].append(ModelOnDevice(model=model, desired=desired))
            continue
        found[device].append(
            ModelOnDevice(
                model=model,
                active=builds.get(said.active or ""),
                previous=builds.get(said.previous or ""),
                candidate=builds.get(said.candidate or ""),
                state=said.state,
                reason=said.reason,
                detail=said.detail,
                updated_ms=said.updated_ms,
                desired=desired,
            )
        )
    return found


def reports_of(session: Session, device: str, before: int | None, limit: int) -> list[ReportView]:
    """The newest first, `before` a number that an earlier page ended with. Raises `NotFound`."""
    get_device(session, device)
    query = select(ReportRow).where(ReportRow.device == device).order_by(ReportRow.seq.desc()).limit(limit)
    if before is not None:
        query = query.where(ReportRow.seq < before)
    return [
        ReportView(
            seq=row.seq,
            at_ms=row.at_ms,
            received_ms=row.received_ms,
            assignment=row.assignment,
            model=row.model,
            version=row.version,
            build=row.build,
            state=row.state,
            reason=row.reason,
            detail=row.detail,
        )
        for row in session.scalars(query)
    ]


def telemetry_of(session: Session, device: str, since_ms: int) -> list[TelemetryView]:
    """The windows received since then, oldest first, at most 5,000 (the newest). Raises `NotFound`."""
    get_device(session, device)
    query = (
        select(TelemetryRow)
        .where(TelemetryRow.device == device, TelemetryRow.received_ms >= since_ms)
        .order_by(TelemetryRow.end_ms.desc(), TelemetryRow.seq.desc(), TelemetryRow.part)
        .limit(_MAX_WINDOWS)
    )
    rows = reversed(session.scalars(query).all())
    return [
        TelemetryView(
            start_ms=row.start_ms,
            end_ms=row.end_ms,
            model=row.model,
            version=row.version,
            build=row.build,
            probation=row.probation,
            ok=row.ok,
            failed=row.failed,
            fallbacks=row.fallbacks,
            errors=row.errors,
            queue=_latency(row.histograms.get("queue")),
            compute=_latency(row.histograms.get("compute")),
            end_to_end=_latency(row.histograms.get("end_to_end")),
            batches=row.histograms.get("batches") or {},
        )
        for row in rows
    ]


def _capture(resources: dict[str, Any] | None) -> CaptureView | None:
    told = (resources or {}).get("capture")
    return None if told is None else CaptureView(**msgspec.structs.asdict(msgspec.convert(told, Captured)))


def _summary(device: Device) -> dict[str, Any]:
    return {
        "id": device.id,
        "profile": device.profile,
        "simulated": device.simulated,
        "online": device.online,
        "last_seen_ms": device.last_seen_ms,
        "enrolled_ms": device.enrolled_ms,
        "revoked_ms": device.revoked_ms,
        "agent_version": device.agent_version,
        "board": device.facts.get("board", ""),
        "architecture": device.facts.get("architecture", ""),
        "labels": device.labels,
        "certificate_ends_ms": device.certificate_ends_ms,
    }


def _desired(session: Session, devices: Sequence[str]) -> dict[tuple[str, str], DesiredView]:
    query = (
        select(AssignmentRow, Version.name, Build.target, Build.digest, Campaign.name)
        .join(Desired, Desired.assignment == AssignmentRow.id)
        .join(Version, Version.id == AssignmentRow.version_id)
        .join(Build, Build.id == AssignmentRow.build_id)
        .outerjoin(Campaign, Campaign.id == AssignmentRow.campaign_id)
        .where(Desired.device.in_(devices))
    )
    found = {}
    for row, version, target, digest, campaign in session.execute(query):
        found[row.device, row.model] = DesiredView(
            assignment=row.id,
            counter=row.counter,
            action=action_of(row.why),
            version=version,
            target=target,
            build=digest,
            build_id=row.build_id,
            kind=row.kind,
            campaign=campaign,
            state=row.state,
            reason=row.reason,
            detail=row.detail,
            progress=row.progress,
            bytes_fetched=row.bytes_fetched,
            issued_ms=row.issued_ms,
            sent_ms=row.sent_ms,
            expires_ms=row.expires_ms,
            updated_ms=row.updated_ms,
            why=row.why,
        )
    return found


def _builds(session: Session, rows: Any) -> dict[str, BuildRef]:
    digests = sorted({d for row in rows for d in (row.active, row.previous, row.candidate) if d})
    found = {digest: BuildRef(digest=digest) for digest in digests}
    for part in chunks(digests):
        query = select(Build.digest, Build.id, Version.name, Build.target, Build.size)
        query = query.join(Version, Version.id == Build.version_id).where(Build.digest.in_(part))
        for digest, build_id, version, target, size in session.execute(query):
            found[str(digest)] = BuildRef(digest=str(digest), id=build_id, version=version, target=target, size=size)
    return found


def _latency(stored: Any) -> LatencyView:
    try:
        histogram = msgspec.convert(stored, Histogram)
    except msgspec.ValidationError:
        histogram = Histogram()
    if histogram.count == 0:
        return LatencyView(count=0, p50_ms=None, p90_ms=None, p99_ms=None, max_ms=None)
    p50, p90, p99 = (round(histogram.quantile(q) * 1000, 4) for q in (0.5, 0.9, 0.99))
    return LatencyView(count=histogram.count, p50_ms=p50, p90_ms=p90, p99_ms=p99, max_ms=round(histogram.max * 1000, 4))
