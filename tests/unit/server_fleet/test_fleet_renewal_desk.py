"""Renewals over the devices' own sessions: who is answered, by what, how often; on a real database."""

from __future__ import annotations

import queue
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from covey_contract.enrolment import RenewReply, RenewRequest, renewal_statement
from covey_contract.messages import Status
from covey_server.audit import Actor
from covey_server.db.engine import Database
from covey_server.db.tables import Certificate, Device, RenewalRequest
from covey_server.fleet import renewal
from covey_server.fleet.ca import FleetCA
from covey_server.fleet.counters import Counters
from covey_server.fleet.enrolment import revoke
from covey_server.fleet.inbox import Incoming
from covey_server.fleet.renewal import Renewed, Waits, note_certificate
from covey_server.fleet.renewal_desk import RenewalDesk

DAYS = 90.0
ONE, OTHER = "d0001", "d0002"


class Desk:
    """`clock` may be set; what is answered is as the service wires it."""

    def __init__(self, database: Database, ca: FleetCA, now_ms: int, per_minute: int = 100) -> None:
        self.database, self.ca, self.now_ms = database, ca, now_ms
        self.counters = Counters()
        self.keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in (ONE, OTHER)}
        self.held = {name: self._enrol(name) for name in self.keys}
        self.desk = RenewalDesk(queue.Queue(), self.come_back, self.counters, lambda *_: True, per_minute=per_minute)

    def _enrol(self, name: str) -> str:
        issued = self.ca.sign_device_csr(self.csr(self.keys[name], name), name, self.now_ms, DAYS)
        with self.database.session() as session:
            note_certificate(session, session.get_one(Device, name), issued, self.now_ms)
        return issued.pem

    def come_back(self, request: RenewRequest, origin: str, speaker: str | None) -> Renewed | Waits:
        with self.database.session() as session:
            return renewal.come_back(session, self.ca, request, origin, self.now_ms, DAYS, speaker)

    @staticmethod
    def csr(key: ec.EllipticCurvePrivateKey, name: str) -> str:
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        built = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
        return built.public_bytes(serialization.Encoding.PEM).decode()

    def request(self, name: str, number: str = "r1", new: ec.EllipticCurvePrivateKey | None = None) -> RenewRequest:
        csr = self.csr(new or ec.generate_private_key(ec.SECP256R1()), name)
        proof = self.keys[name].sign(renewal_statement(self.held[name], csr), ec.ECDSA(hashes.SHA256()))
        return RenewRequest(certificate_pem=self.held[name], csr_pem=csr, proof=proof, id=number)

    def say(self, device: str, request: RenewRequest, now: float = 0.0) -> RenewReply:
        reply = self.desk.answer(Incoming(device, request, self.now_ms), now)
        assert reply is not None
        assert reply.id == request.id
        return reply

    def issued(self, device: str) -> int:
        query = select(func.count()).select_from(Certificate).where(Certificate.device == device)
        with self.database.reading() as session:
            return session.scalar(query) or 0


@pytest.fixture
def make(database: Database, tmp_path: Path, now_ms: int) -> Callable[..., Desk]:
    ca = FleetCA.load_or_create(tmp_path / "ca", now_ms)
    return lambda **more: Desk(database, ca, now_ms, **more)


@pytest.fixture
def desk(make: Callable[..., Desk]) -> Desk:
    return make()


def test_who_has_the_key_gets_the_next_certificate(desk: Desk) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    reply = desk.say(ONE, desk.request(ONE, new=key))
    assert reply.status == 200
    certificate = x509.load_pem_x509_certificate(reply.certificate_pem.encode())
    assert certificate.subject.rfc4514_string() == f"CN={ONE}"
    assert certificate.public_key() == key.public_key()
    assert desk.issued(ONE) == 2


def test_a_request_that_comes_twice_is_answered_by_the_same_certificate(desk: Desk) -> None:
    asked = desk.request(ONE)
    assert desk.say(ONE, asked) == desk.say(ONE, asked)
    assert desk.issued(ONE) == 2
    # The same id of another device is another request.
    assert desk.say(OTHER, desk.request(OTHER)).certificate_pem != desk.say(ONE, asked).certificate_pem


def test_only_the_device_on_whose_topic_it_came_is_answered(desk: Desk) -> None:
    """Whoever has stolen another's request, or another's key, has no session as that one."""
    reply = desk.say(OTHER, desk.request(ONE))
    assert (reply.status, reply.certificate_pem) == (403, "")
    assert desk.issued(ONE) == desk.issued(OTHER) == 1
    # Nor does it make anybody wait for an operator.
    desk.now_ms += 100 * 86_400_000
    assert desk.say(OTHER, desk.request(ONE, "r2")).status == 403
    with desk.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(RenewalRequest)) == 0


def test_who_has_not_the_key_is_refused(desk: Desk) -> None:
    asked = desk.request(ONE)
    stolen = RenewRequest(
        certificate_pem=asked.certificate_pem, csr_pem=desk.request(ONE).csr_pem, proof=asked.proof, id="r1"
    )
    assert desk.say(ONE, stolen).status == 403
    rubbish = RenewRequest(certificate_pem="x", csr_pem="y", proof=b"z", id="r1")
    assert desk.say(ONE, rubbish).status == 422
    assert desk.issued(ONE) == 1


def test_a_revoked_device_is_refused(desk: Desk) -> None:
    with desk.database.session() as session:
        revoke(session, ONE, desk.now_ms)
    assert desk.say(ONE, desk.request(ONE)).status == 403
    assert desk.issued(ONE) == 1


def test_after_its_end_an_operator_decides(desk: Desk) -> None:
    """The broker lets nobody in by it; who is in still may ask."""
    desk.now_ms += 100 * 86_400_000
    key = ec.generate_private_key(ec.SECP256R1())
    reply = desk.say(ONE, desk.request(ONE, "r1", key))
    assert reply.status == 202
    assert f"covey device approve {ONE}" in reply.detail
    with desk.database.session() as session:
        waits = renewal.waiting(session, ONE)
        assert [one.origin for one in waits] == ["renew mqtt"]
        renewal.decide(session, ONE, None, renewal.APPROVED, Actor("olga", "user", "test"), desk.now_ms)
    # The very same request once more, as QoS 1 may bring it: no answer but a certificate's is kept.
    assert desk.say(ONE, desk.request(ONE, "r1", key)).status == 200


def test_one_device_asks_so_often_a_minute_and_no_more(make: Callable[..., Desk]) -> None:
    desk = make(per_minute=5)
    said = [desk.say(ONE, desk.request(ONE, f"r{number}"), now=1.0).status for number in range(8)]
    assert said == [200] * 5 + [429] * 3
    assert desk.say(OTHER, desk.request(OTHER), now=1.0).status == 200
    assert desk.say(ONE, desk.request(ONE, "later"), now=61.0).status == 200
    assert desk.counters.value("covey_enrolments_total", outcome="too_many") == 3


def test_a_database_that_cannot_be_written_is_told_and_outlived(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Renewed:
        raise OperationalError("insert", {}, Exception("disk full"))

    with monkeypatch.context() as patched:
        patched.setattr(desk.desk, "_come_back", broken)
        assert desk.say(ONE, desk.request(ONE)).status == 503
    assert desk.say(ONE, desk.request(ONE)).status == 200


def test_what_nobody_would_know_the_answer_of_is_dropped(desk: Desk) -> None:
    assert desk.desk.answer(Incoming(ONE, desk.request(ONE, ""), 0), 0.0) is None
    assert desk.desk.answer(Incoming(ONE, Status(boot_id="b", online=True), 0), 0.0) is None
    assert desk.issued(ONE) == 1
