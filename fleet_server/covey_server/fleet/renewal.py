"""How devices keep their identity: certificates renewed while they are good, and devices that come back after theirs has expired.

Invariants: only who has the key of a certificate that this fleet gave out gets the next one, and never if it or its device is
revoked. With an expired one, an operator approves the very key that asks. The device keeps all that the server knows of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from covey_contract.enrolment import RenewRequest, renewal_statement
from covey_server.audit import Actor, record
from covey_server.db.tables import Certificate, Device, RenewalRequest
from covey_server.errors import Conflict, Forbidden, Invalid, NotFound, TooMany
from covey_server.fleet.ca import CertificateRequestError, FleetCA, IssuedCertificate, request_key

WAITING, APPROVED, REFUSED = "waiting", "approved", "refused"
# Keys that may wait for one device at a time: its own, and those of whoever else has its old key.
_MAX_WAITING = 4


@dataclass(frozen=True)
class Waits:
    """An operator is to approve. `new`: this key has not asked before."""

    device: str
    key: str
    new: bool
    why: str

    @property
    def words(self) -> str:
        return f"{self.why}; an operator is to approve the key {self.key[:16]}: `covey device approve {self.device}`"


@dataclass(frozen=True)
class Renewed:
    device: str
    certificate: IssuedCertificate
    approved_by: str | None = None


def renew(
    session: Session, ca: FleetCA, held: x509.Certificate, csr_pem: str, name: str | None, now_ms: int, days: float
) -> Renewed:
    """A new certificate for the device whose certificate is `held`, on the request's key, which may be a new one. The old one stays good until
    it expires. Raises `Forbidden` unless the fleet gave it out and neither it nor the device is revoked, `Invalid` for a request by another
    name."""
    device, _ = _holder(session, ca, held)
    if name is not None and name != device.id:
        raise Invalid(
            f"the certificate request is for {name[:80]!r}, the certificate is of {device.id!r}", field="csr_pem"
        )
    return Renewed(device.id, _issue(session, ca, device, csr_pem, now_ms, days))


def come_back(
    session: Session,
    ca: FleetCA,
    request: RenewRequest,
    origin: str,
    now_ms: int,
    days: float,
    speaker: str | None = None,
) -> Renewed | Waits:
    """As `renew`, for who has signed the request with the key of a certificate. While that is good nobody is asked. `speaker`: the device that
    says it, where that is known, and who alone may. Raises `Forbidden` also where an operator has refused this key, and `TooMany`
    where too many wait for the device."""
    held = _shown(request)
    device, row = _holder(session, ca, held)
    if speaker not in {None, device.id}:
        raise Forbidden(f"the certificate is not of {speaker}", code="wrong_device")
    try:
        key = key_of(request_key(request.csr_pem))
    except CertificateRequestError as error:
        raise Invalid(str(error), field="csr_pem") from error
    if row.not_after_ms > now_ms:
        return Renewed(device.id, _issue(session, ca, device, request.csr_pem, now_ms, days))
    said = ask_operator(session, device, key, origin, now_ms, ended_ms=row.not_after_ms)
    if isinstance(said, Waits):
        return said
    return Renewed(device.id, _issue(session, ca, device, request.csr_pem, now_ms, days), approved_by=said)


def ask_operator(
    session: Session, device: Device, key: str, origin: str, now_ms: int, *, ended_ms: int | None
) -> str | Waits:
    """Who has approved this key for the device, or that nobody has yet; it is noted that it asks. `ended_ms`: when the certificate ended by which
    it does; None: it shows a factory's. An approval is for one certificate. Raises as `come_back` does."""
    found = session.scalar(select(RenewalRequest).where(RenewalRequest.device == device.id, RenewalRequest.key == key))
    why = f"{device.id} has enrolled before" if ended_ms is None else f"the certificate of {device.id} has expired"
    if found is None:
        asking = select(func.count()).select_from(RenewalRequest).where(RenewalRequest.device == device.id)
        if (session.scalar(asking) or 0) >= _MAX_WAITING:
            raise TooMany(f"{_MAX_WAITING} keys have asked for {device.id} already; an operator is to approve one")
        found = RenewalRequest(
            device=device.id,
            key=key,
            origin=origin[:128],
            asked_ms=now_ms,
            seen_ms=now_ms,
            ended_ms=ended_ms,
            state=WAITING,
        )
        session.add(found)
        actor = Actor(device.id, "device", origin)
        record(session, actor, "device.renewal_asked", device.id, {"key": key[:16]}, now_ms)
        return Waits(device.id, key, new=True, why=why)
    if found.state == REFUSED:
        raise Forbidden(f"an operator has refused this key of {device.id}", code="renewal_refused")
    if found.state == WAITING:
        found.seen_ms, found.origin = now_ms, origin[:128]
        return Waits(device.id, key, new=False, why=why)
    approved_by = found.decided_by or ""
    forget(session, device.id)
    return approved_by


def decide(session: Session, device: str, key: str | None, state: str, actor: Actor, now_ms: int) -> RenewalRequest:
    """Approve or refuse the key that asks for the device, named by how it begins where several do. Raises `NotFound`, `Conflict`."""
    row = session.get(Device, device)
    if row is None:
        raise NotFound(f"no device is called {device[:64]!r}")
    if row.revoked_ms is not None:
        raise Conflict(f"{device} is revoked", code="device_revoked")
    query = select(RenewalRequest).where(RenewalRequest.device == device).order_by(RenewalRequest.id)
    found = [one for one in session.scalars(query) if one.key.startswith(key or "")]
    if key is None:
        found = [one for one in found if one.state == WAITING]
    if not found:
        raise NotFound(f"{device} does not wait for an approval" + (f" of the key {key[:16]}" if key else ""))
    if len(found) > 1:
        keys = ", ".join(one.key[:16] for one in found)
        raise Conflict(f"several keys ask for {device}: {keys}; name one", code="several_keys")
    request = found[0]
    request.state, request.decided_ms, request.decided_by = state, now_ms, actor.name[:64]
    action = "device.renewal_approve" if state == APPROVED else "device.renewal_refuse"
    record(session, actor, action, device, {"key": request.key[:16]}, now_ms)
    session.flush()
    return request


def waiting(session: Session, device: str | None = None, limit: int = 200) -> list[RenewalRequest]:
    """Who waits for an operator, the first to ask first."""
    query = select(RenewalRequest).where(RenewalRequest.state == WAITING).order_by(RenewalRequest.id).limit(limit)
    if device is not None:
        query = query.where(RenewalRequest.device == device)
    return list(session.scalars(query))


def forget(session: Session, device: str) -> None:
    """Nobody waits for the device any longer."""
    session.execute(delete(RenewalRequest).where(RenewalRequest.device == device))


def note_certificate(session: Session, device: Device, certificate: IssuedCertificate, now_ms: int) -> None:
    """It was given to the device. Which one that uses, it says itself when it connects."""
    device.certificate_ends_ms = certificate.not_after_ms
    session.flush()
    session.add(
        Certificate(
            serial=certificate.serial, device=device.id, issued_ms=now_ms, not_after_ms=certificate.not_after_ms
        )
    )


def key_of(public: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 in hex of the public key; people compare how it begins."""
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def _issue(session: Session, ca: FleetCA, device: Device, csr_pem: str, now_ms: int, days: float) -> IssuedCertificate:
    try:
        certificate = ca.sign_device_csr(csr_pem, device.id, now_ms, days)
    except CertificateRequestError as error:
        raise Invalid(str(error), field="csr_pem") from error
    note_certificate(session, device, certificate, now_ms)
    return certificate


def _shown(request: RenewRequest) -> x509.Certificate:
    """The certificate of the request, if its key has signed that. Raises `Invalid` and `Forbidden`."""
    try:
        held = x509.load_pem_x509_certificate(request.certificate_pem.encode())
        public = held.public_key()
    except Exception as error:  # noqa: BLE001 - hostile ASN.1: the parser's errors have no common base
        raise Invalid("this is not a certificate in PEM", field="certificate_pem") from error
    try:
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise InvalidSignature
        statement = renewal_statement(request.certificate_pem, request.csr_pem)
        public.verify(request.proof, statement, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise Forbidden("the request is not signed by the certificate's key", code="bad_proof") from error
    return held


def _holder(session: Session, ca: FleetCA, held: x509.Certificate) -> tuple[Device, Certificate]:
    row = session.get(Certificate, f"{held.serial_number:x}") if ca.made(held) else None
    device = None if row is None else session.get(Device, row.device)
    if row is None or device is None or row.revoked_ms is not None or device.revoked_ms is not None:
        raise Forbidden("this certificate is no device's, or is revoked", code="bad_certificate")
    return device, row
