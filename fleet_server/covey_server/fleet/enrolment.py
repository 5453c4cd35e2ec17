"""How devices join and leave: claim tokens, enrolment, revocation.

Invariants: a token is used once, and only by the transaction that also makes the device; its secret is stored as a hash; an
existing device is taken over only by a token that an operator has bound to its id.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from covey_contract.enrolment import ClaimToken, EnrolRequest
from covey_contract.errors import TopicError
from covey_contract.facts import Facts
from covey_contract.topics import check_device_id
from covey_server.db.tables import (
    AssignmentRow,
    Certificate,
    ClaimTokenRow,
    Device,
    Group,
    GroupMember,
    Reported,
    ReportRow,
    TelemetryRow,
)
from covey_server.errors import Conflict, Forbidden, Invalid, NotFound
from covey_server.fleet.broker import Revocations
from covey_server.fleet.ca import (
    SERVER_USERS,
    CertificateRequestError,
    FleetCA,
    IssuedCertificate,
    request_key,
    serial_prefix,
)
from covey_server.fleet.columns import MAX_INT, clean
from covey_server.fleet.groups import ALL
from covey_server.fleet.labels import check_labels, put_labels
from covey_server.fleet.moved import note_presence
from covey_server.fleet.renewal import Waits, ask_operator, forget, key_of, note_certificate

MAX_TTL_S = 90 * 24 * 3600
_MAX_GROUPS = 64
_SPAN = MAX_INT + 1  # of the numbers a device gives its reports


@dataclass(frozen=True)
class NewToken:
    token: str
    expires_ms: int


@dataclass(frozen=True)
class Enrolled:
    device: str
    certificate: IssuedCertificate
    again: bool  # it was known before; its older certificates are revoked


def hash_secret(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def new_claim_token(
    session: Session,
    ca: FleetCA,
    *,
    device: str | None,
    labels: dict[str, str],
    groups: Sequence[str],
    ttl_s: int,
    created_by: str,
    now_ms: int,
) -> NewToken:
    """Raises `Invalid` for anything that the device could not be given later."""
    if device is not None:
        _check_id(device, "device")
    check_labels(labels)
    if not 1 <= ttl_s <= MAX_TTL_S:
        raise Invalid(f"ttl_s is between 1 and {MAX_TTL_S}", field="ttl_s")
    wanted = sorted(set(groups) - {ALL})  # every device is in `all` anyway
    if len(wanted) > _MAX_GROUPS:
        raise Invalid(f"at most {_MAX_GROUPS} groups", field="groups")
    for name in wanted:
        group = session.get(Group, name)
        if group is None:
            raise Invalid(f"no group is called {name[:64]!r}", field="groups")
        if group.selector is not None:
            raise Invalid(f"group {name!r} is a selector: devices cannot be put into it", field="groups")
    secret = secrets.token_urlsafe(24)
    expires_ms = now_ms + ttl_s * 1000
    session.add(
        ClaimTokenRow(
            secret_hash=hash_secret(secret),
            device=device,
            labels=labels,
            groups=wanted,
            created_ms=now_ms,
            created_by=created_by[:64],
            expires_ms=expires_ms,
        )
    )
    return NewToken(str(ClaimToken(ca.fingerprint, secret)), expires_ms)


def enrol(
    session: Session,
    ca: FleetCA,
    request: EnrolRequest,
    profile_of: Callable[[Facts], tuple[str | None, str]],
    now_ms: int,
    days: float,
    suffix: Callable[[], str] = lambda: secrets.token_hex(2),
) -> Enrolled:
    """One transaction: token, device, certificate. Raises `Forbidden` for a token that is not good (any more), `Conflict`
    for an id that is taken, `Invalid` for a bad certificate request or id; then the token is as good as before.

    A device whose answer was lost on the way may ask again with the same token and the same key."""
    try:
        prefix = serial_prefix(request_key(request.csr_pem))
    except CertificateRequestError as error:
        raise Invalid(str(error), field="csr_pem") from error
    token = _use_token(session, request.secret, now_ms)
    if token is None:
        device = _enrolled_before(session, request.secret, prefix, now_ms)
        certificate = ca.sign_device_csr(request.csr_pem, device, now_ms, days)
        note_certificate(session, session.get_one(Device, device), certificate, now_ms)
        return Enrolled(device, certificate, again=False)
    device, again = _name(session, token, request, suffix)
    token.used_by = device
    row, certificate = _join(session, ca, device, request, profile_of, now_ms, days)
    put_labels(row, {**row.labels, **token.labels})
    _join_groups(session, device, token.groups)
    return Enrolled(device, certificate, again)


def enrol_known(
    session: Session,
    ca: FleetCA,
    name: str,
    request: EnrolRequest,
    profile_of: Callable[[Facts], tuple[str | None, str]],
    origin: str,
    now_ms: int,
    days: float,
) -> Enrolled | Waits:
    """As `enrol`, for who has shown a factory's certificate for this name instead of a token. The first is let in; after that an operator is to
    approve each further key, and a revoked device stays out. Raises `Forbidden`, `Conflict` and `Invalid`."""
    _check_id(name, "device")
    if request.device not in {None, name}:
        raise Conflict(f"the certificate shown is for the device {name!r}", code="wrong_device")
    try:
        key = key_of(request_key(request.csr_pem))
    except CertificateRequestError as error:
        raise Invalid(str(error), field="csr_pem") from error
    known = session.get(Device, name)
    if known is not None:
        if known.revoked_ms is not None:
            raise Forbidden(f"{name} is revoked", code="device_revoked")
        said = ask_operator(session, known, key, origin, now_ms, ended_ms=None)
        if isinstance(said, Waits):
            return said
    row, certificate = _join(session, ca, name, request, profile_of, now_ms, days)
    put_labels(row, row.labels)
    return Enrolled(name, certificate, known is not None)


def _join(
    session: Session,
    ca: FleetCA,
    device: str,
    request: EnrolRequest,
    profile_of: Callable[[Facts], tuple[str | None, str]],
    now_ms: int,
    days: float,
) -> tuple[Device, IssuedCertificate]:
    certificate = ca.sign_device_csr(request.csr_pem, device, now_ms, days)
    profile, reason = profile_of(request.facts)
    row = session.get(Device, device)
    if row is None:
        row = Device(id=device, labels={}, enrolled_ms=now_ms, counter=0, online=False)
        session.add(row)
    else:
        _forget_past(session, device, now_ms)
    row.facts = msgspec.to_builtins(request.facts)
    row.facts_digest = request.facts.digest()
    row.simulated = request.facts.simulated
    row.agent_version = clean(request.facts.agent_version, 64)
    row.profile, row.profile_reason = profile, reason
    row.timezone = clean(request.facts.timezone, 64)
    row.enrolled_ms, row.revoked_ms, row.resources, row.boot_id = now_ms, None, None, None
    note_certificate(session, row, certificate, now_ms)
    return row, certificate


def revoke(session: Session, device: str, now_ms: int) -> bool:
    """Mark the device and all its certificates; returns whether it was not revoked before. Raises `NotFound`. The caller
    commits, then has the broker cut it off."""
    row = session.get(Device, device)
    if row is None:
        raise NotFound(f"no device is called {device[:64]!r}")
    if row.revoked_ms is not None:
        return False
    row.revoked_ms, row.online = now_ms, False
    forget(session, device)
    note_presence(session, [device])
    _revoke_certificates(session, device, now_ms)
    return True


def revocations(session: Session, ca: FleetCA, now_ms: int) -> Revocations:
    """Everything that a broker must know. Certificates that have expired need no revoking."""
    devices = session.scalars(select(Device.id).where(Device.revoked_ms.is_not(None)))
    rows = session.execute(
        select(Certificate.serial, Certificate.revoked_ms).where(
            Certificate.revoked_ms.is_not(None), Certificate.not_after_ms > now_ms
        )
    )
    return Revocations(frozenset(devices), ca.crl([(row.serial, row.revoked_ms) for row in rows], now_ms))


def readable_id(facts: Facts, suffix: str) -> str:
    """A name that tells people what the device is, as `raspberry-pi-5-7f3a`."""
    words = facts.board or facts.cpu_model or facts.architecture
    words = re.split(r"\b(?:model|rev|developer kit|cpu)\b|[(@]", words, maxsplit=1, flags=re.IGNORECASE)[0]
    slug = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:40].strip("-")
    return f"{slug or 'device'}-{suffix}"


def _check_id(device: str, field: str) -> None:
    try:
        check_device_id(device)
    except TopicError as error:
        raise Invalid(str(error), field=field) from error
    if device in SERVER_USERS:
        raise Invalid(f"{device!r} is the server's own name", field=field)


def _use_token(session: Session, secret: str, now_ms: int) -> ClaimTokenRow | None:
    hashed = hash_secret(secret)
    # One statement decides, so that of two devices with one token only one gets in.
    used = session.execute(
        update(ClaimTokenRow)
        .where(ClaimTokenRow.secret_hash == hashed, ClaimTokenRow.used_ms.is_(None), ClaimTokenRow.expires_ms > now_ms)
        .values(used_ms=now_ms)
        .returning(ClaimTokenRow.id)
        .execution_options(synchronize_session=False)
    ).scalar_one_or_none()
    if used is None:
        return None
    return session.execute(select(ClaimTokenRow).where(ClaimTokenRow.id == used)).scalar_one()


def _enrolled_before(session: Session, secret: str, prefix: str, now_ms: int) -> str:
    """The device that used this token, if its certificate in force is on the same key. Raises `Forbidden`."""
    device = session.scalar(
        select(Certificate.device)
        .join(ClaimTokenRow, ClaimTokenRow.used_by == Certificate.device)
        .where(
            ClaimTokenRow.secret_hash == hash_secret(secret),
            ClaimTokenRow.expires_ms > now_ms,
            Certificate.serial.startswith(prefix),
            Certificate.revoked_ms.is_(None),
        )
        .limit(1)
    )
    if device is None:
        raise Forbidden("the claim token is unknown, used or expired", code="bad_claim_token")
    return device


def _name(session: Session, token: ClaimTokenRow, request: EnrolRequest, suffix: Callable[[], str]) -> tuple[str, bool]:
    """The device's id, and whether it is one that is known already."""
    if token.device is not None:
        if request.device not in {None, token.device}:
            raise Conflict(f"the claim token is for the device {token.device!r}", code="wrong_device")
        return token.device, session.get(Device, token.device) is not None
    if request.device is not None:
        _check_id(request.device, "device")
        if session.get(Device, request.device) is not None:
            raise Conflict(
                f"a device {request.device!r} exists; to enrol it again, use a claim token that is bound to it",
                code="device_exists",
            )
        return request.device, False
    device = readable_id(request.facts, suffix())
    while session.get(Device, device) is not None:
        device = readable_id(request.facts, suffix() + suffix())
    return device, False


def _forget_past(session: Session, device: str, now_ms: int) -> None:
    """What enrols again may be another machine: its numbers start anew and must not look like duplicates of the old ones, so
    those move out of the way; what the old one ran says nothing of it."""
    _revoke_certificates(session, device, now_ms)
    forget(session, device)
    session.execute(delete(Reported).where(Reported.device == device))
    note_presence(session, [device])
    session.execute(
        update(AssignmentRow)
        .where(AssignmentRow.device == device)
        .values(reported_seq=None)
        .execution_options(synchronize_session=False)
    )
    for table in (ReportRow, TelemetryRow):
        lowest = session.scalar(select(func.min(table.seq)).where(table.device == device)) or 0
        earlier = -(min(lowest, 0) // _SPAN)  # lives of this device that were moved below zero before, one span each
        session.execute(
            update(table)
            .where(table.device == device, table.seq >= 0)
            .values(seq=table.seq - (earlier + 1) * _SPAN)
            .execution_options(synchronize_session=False)
        )


def _revoke_certificates(session: Session, device: str, now_ms: int) -> None:
    session.execute(
        update(Certificate)
        .where(Certificate.device == device, Certificate.revoked_ms.is_(None))
        .values(revoked_ms=now_ms)
        .execution_options(synchronize_session=False)
    )


def _join_groups(session: Session, device: str, groups: Sequence[Any]) -> None:
    for name in groups:
        group = session.get(Group, name)
        if group is None or group.selector is not None:
            continue  # it was deleted, or became a selector, since the token was made
        if session.get(GroupMember, (name, device)) is None:
            session.add(GroupMember(group=name, device=device))
