"""Tokens, names, certificates, revocation lists, and what becomes of a device's past when it enrols again."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from sqlalchemy import select

from covey_contract.enrolment import EnrolRequest, parse_claim_token
from covey_contract.facts import Facts
from covey_server.db.engine import Database
from covey_server.db.tables import ClaimTokenRow, Device, Group, GroupMember, ReportRow
from covey_server.errors import Forbidden, Invalid
from covey_server.fleet.ca import CertificateRequestError, FleetCA
from covey_server.fleet.enrolment import enrol, new_claim_token, readable_id, revocations, revoke


@pytest.fixture
def ca(tmp_path: Path, now_ms: int) -> FleetCA:
    return FleetCA.load_or_create(tmp_path / "ca", now_ms)


def csr(key: Any = None, name: str = "covey-server") -> str:
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def token(database: Database, ca: FleetCA, now_ms: int, device: str | None = None, **more: Any) -> str:
    with database.session() as session:
        given = {"labels": {}, "groups": [], "ttl_s": 60, **more}
        made = new_claim_token(session, ca, device=device, created_by="t", now_ms=now_ms, **given)
    return parse_claim_token(made.token).secret


def join(database: Database, ca: FleetCA, secret: str, now_ms: int, **facts: Any) -> str:
    request = EnrolRequest(secret=secret, csr_pem=csr(), facts=Facts(**{"architecture": "x86_64", **facts}))
    with database.session() as session:
        return enrol(session, ca, request, lambda _: (None, "none"), now_ms, 90, lambda: "7f3a").device


def test_the_server_names_the_device_whatever_it_asks_for(ca: FleetCA, now_ms: int) -> None:
    issued = ca.sign_device_csr(csr(name="covey-server"), "press-7", now_ms, 90)
    certificate = x509.load_pem_x509_certificate(issued.pem.encode())
    assert certificate.subject.rfc4514_string() == "CN=press-7"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["urn:covey:device:press-7"]
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == datetime.timedelta(days=91)
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca.ca_pem.encode()))


@pytest.mark.parametrize("device", ["covey-server", "", "a b", "_all", "x" * 65, "a/b", "a.b"])
def test_names_that_no_device_may_have(ca: FleetCA, now_ms: int, device: str) -> None:
    with pytest.raises(CertificateRequestError):
        ca.sign_device_csr(csr(), device, now_ms)


def test_requests_that_are_not_signed(ca: FleetCA, now_ms: int) -> None:
    good = csr()
    middle = len(good) // 2
    tampered = good[:middle] + ("A" if good[middle] != "A" else "B") + good[middle + 1 :]
    weak = csr(rsa.generate_private_key(65537, 2048))
    other_curve = csr(ec.generate_private_key(ec.SECP384R1()))
    for bad in ("", "x", tampered, weak, other_curve, good * 60, "\ud800"):
        with pytest.raises(CertificateRequestError):
            ca.sign_device_csr(bad, "press-7", now_ms)


def test_the_authority_survives_restarts_and_renews_its_own(ca: FleetCA, now_ms: int) -> None:
    again = FleetCA.load_or_create(ca.folder, now_ms + 1000)
    assert again.fingerprint == ca.fingerprint
    assert (ca.folder / "root.key").stat().st_mode & 0o777 == 0o600
    pair = ca.server_certificate(["localhost", "127.0.0.1"], now_ms)
    first = pair.certificate.read_bytes()
    assert pair.key.stat().st_mode & 0o777 == 0o600
    assert again.server_certificate(["127.0.0.1", "localhost"], now_ms).certificate.read_bytes() == first
    other = again.server_certificate(["fleet.example"], now_ms).certificate.read_bytes()
    assert other != first
    in_years = now_ms + 820 * 86_400_000
    assert again.server_certificate(["fleet.example"], in_years).certificate.read_bytes() != other
    pair.certificate.write_text("torn")
    assert b"BEGIN" in again.server_certificate(["fleet.example"], now_ms).certificate.read_bytes()
    (ca.folder / "root.key").write_text("torn")
    with pytest.raises(ValueError, match="PEM"):
        FleetCA.load_or_create(ca.folder, now_ms)


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"board": "Raspberry Pi 5 Model B Rev 1.0"}, "raspberry-pi-5-7f3a"),
        ({"board": "NVIDIA Jetson Orin Nano Developer Kit"}, "nvidia-jetson-orin-nano-7f3a"),
        ({"cpu_model": "Intel(R) Core(TM) i5"}, "intel-7f3a"),
        ({}, "x86-64-7f3a"),
        ({"board": "机器"}, "device-7f3a"),
    ],
)
def test_readable_ids(facts: dict[str, Any], name: str) -> None:
    assert readable_id(Facts(**{"architecture": "x86_64", **facts}), "7f3a") == name


def test_a_token_works_once_and_not_too_late(database: Database, ca: FleetCA, now_ms: int) -> None:
    secret = token(database, ca, now_ms)
    with database.reading() as session:
        row = session.scalars(select(ClaimTokenRow)).one()
        assert secret not in repr(row.__dict__)
    with pytest.raises(Forbidden):
        join(database, ca, secret, now_ms + 60_000)
    assert join(database, ca, secret, now_ms) == "x86-64-7f3a"
    with pytest.raises(Forbidden):
        join(database, ca, secret, now_ms)
    assert join(database, ca, token(database, ca, now_ms), now_ms) == "x86-64-7f3a7f3a"


def test_a_lost_answer_is_given_again_to_the_same_key_only(database: Database, ca: FleetCA, now_ms: int) -> None:
    secret, key = token(database, ca, now_ms), ec.generate_private_key(ec.SECP256R1())

    def ask(key: Any, now_ms: int = now_ms) -> str:
        request = EnrolRequest(secret=secret, csr_pem=csr(key), facts=Facts(architecture="x86_64"))
        with database.session() as session:
            return enrol(session, ca, request, lambda _: (None, "none"), now_ms, 90).device

    device = ask(key)
    assert ask(key) == device
    with pytest.raises(Forbidden):
        ask(ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(Forbidden):
        ask(key, now_ms + 60_000)
    with database.session() as session:
        revoke(session, device, now_ms)
    with pytest.raises(Forbidden):
        ask(key)


def test_groups_and_labels_of_a_token(database: Database, ca: FleetCA, now_ms: int) -> None:
    with database.session() as session:
        session.add(Group(name="canary", description="", selector=None, created_ms=now_ms))
        session.add(Group(name="sel", description="", selector={"profile": "x"}, created_ms=now_ms))
    with pytest.raises(Invalid, match="selector"):
        token(database, ca, now_ms, groups=["sel"])
    name = join(database, ca, token(database, ca, now_ms, groups=["canary", "all"], labels={"line": "a"}), now_ms)
    with database.reading() as session:
        assert session.get_one(Device, name).labels == {"line": "a"}
        assert session.get(GroupMember, ("canary", name)) is not None


def test_enrolling_again_starts_the_numbers_anew(database: Database, ca: FleetCA, now_ms: int) -> None:
    def told() -> list[int]:
        with database.reading() as session:
            return list(session.scalars(select(ReportRow.seq).order_by(ReportRow.seq)))

    def tell(*seqs: int) -> None:
        with database.session() as session:
            for seq in seqs:
                words = dict.fromkeys(("assignment", "model", "version", "build", "state", "reason", "detail"), "x")
                session.add(ReportRow(device="d0001", seq=seq, at_ms=0, received_ms=0, **words))

    for life in range(1, 5):
        tell(0, 1, 2, 1 << 53)
        assert join(database, ca, token(database, ca, now_ms, "d0001"), now_ms) == "d0001"
        assert len(set(told())) == 4 * life
        assert max(told()) < 0
    assert min(told()) > -(1 << 63)


def test_revocation_list_names_what_is_revoked(database: Database, ca: FleetCA, now_ms: int) -> None:
    name = join(database, ca, token(database, ca, now_ms), now_ms)
    with database.session() as session:
        assert revoke(session, name, now_ms)
        found = revocations(session, ca, now_ms)
        later = revocations(session, ca, now_ms + 400 * 86_400_000)
    assert found.devices == {name}
    assert len(x509.load_pem_x509_crl(found.crl)) == 1
    assert len(x509.load_pem_x509_crl(later.crl)) == 0  # it has expired by then
