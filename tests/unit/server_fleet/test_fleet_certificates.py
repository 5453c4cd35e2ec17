"""Whose certificates end, and who may have another after the end: what the server counts, warns of, keeps and refuses."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import select, update

from covey_contract.messages import Hello
from covey_server.audit import Actor
from covey_server.db.engine import Database
from covey_server.db.tables import AuditEntry, Device, RenewalRequest
from covey_server.errors import Conflict, Forbidden, NotFound, TooMany
from covey_server.fleet import certificates, renewal
from covey_server.fleet.ca import FleetCA, request_key
from covey_server.fleet.certificates import CertificateState
from covey_server.fleet.directory import DeviceFilter, list_devices
from covey_server.fleet.enrolment import revoke
from covey_server.fleet.inbox import Incoming
from covey_server.fleet.records import store
from covey_server.fleet.renewal import APPROVED, REFUSED, Waits

DAY_MS = 86_400_000
ANNA = Actor("anna", "operator", "test")


def ends(database: Database, now_ms: int, **days: float) -> None:
    with database.session() as session:
        for device, left in days.items():
            session.execute(
                update(Device).where(Device.id == device).values(certificate_ends_ms=now_ms + int(left * DAY_MS))
            )


def test_who_is_near_the_end_is_counted_listed_and_named(
    database: Database, now_ms: int, caplog: pytest.LogCaptureFixture
) -> None:
    ends(database, now_ms, d0001=80, d0002=14, d0003=0.5, d0004=-1, d0005=3)
    with database.session() as session:
        revoke(session, "d0005", now_ms)  # what was cut off is nobody's worry
    with database.reading() as session:
        assert certificates.count(session, now_ms) == {"good": 1, "ending": 2, "expired": 1}
        wanted = DeviceFilter(certificate=CertificateState.ENDING, now_ms=now_ms)
        assert [one.id for one in list_devices(session, wanted, "", 10)] == ["d0002", "d0003"]
        with caplog.at_level(logging.WARNING):
            certificates.warn(session, now_ms, certificates.warn_ms(90))
    assert "2 devices have certificates that end soon and are not renewed: d0003, d0002" in caplog.text
    assert "1 devices have certificates that have expired: d0004" in caplog.text
    # Of certificates of a day the last four hours are the end, and no more.
    assert certificates.warn_ms(1) == 4 * 3_600_000
    assert certificates.warn_ms(90) == 14 * DAY_MS


def test_a_device_is_believed_about_the_certificate_that_it_uses(database: Database, now_ms: int) -> None:
    """It was given a newer one, and could not store it."""
    ends(database, now_ms, d0001=90)
    fields = {"boot_id": "b", "agent_version": "1", "facts_digest": "0" * 64, "time_ms": now_ms}
    told = [(Hello(**fields, certificate_ends_ms=now_ms + 20 * DAY_MS), 20), (Hello(**fields), 20)]  # type: ignore[arg-type]
    for hello, days in told:
        with database.session() as session:
            store(session, [Incoming("d0001", hello, now_ms)], now_ms)
        with database.reading() as session:
            assert session.get_one(Device, "d0001").certificate_ends_ms == now_ms + days * DAY_MS


def key() -> str:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = request.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return renewal.key_of(request_key(signed.public_bytes(serialization.Encoding.PEM).decode()))


def ask(database: Database, asks: str, now_ms: int) -> str | Waits:
    with database.session() as session:
        device = session.get_one(Device, "d0001")
        return renewal.ask_operator(session, device, asks, "here", now_ms, ended_ms=now_ms - DAY_MS)


def test_an_approval_is_for_one_key_and_one_certificate(database: Database, now_ms: int) -> None:
    mine, thief = key(), key()
    first = ask(database, mine, now_ms)
    assert isinstance(first, Waits)
    assert first.new
    assert isinstance(again := ask(database, mine, now_ms + 1), Waits)
    assert not again.new
    assert isinstance(ask(database, thief, now_ms), Waits)
    with database.session() as session, pytest.raises(Conflict, match="several keys ask"):
        renewal.decide(session, "d0001", None, APPROVED, ANNA, now_ms)
    with database.session() as session:
        renewal.decide(session, "d0001", thief[:12], REFUSED, ANNA, now_ms)
        renewal.decide(session, "d0001", None, APPROVED, ANNA, now_ms)  # one waits still
    with pytest.raises(Forbidden, match="refused this key"):
        ask(database, thief, now_ms)
    assert ask(database, mine, now_ms) == "anna"
    assert isinstance(ask(database, mine, now_ms), Waits)
    with database.reading() as session:
        actions = list(session.scalars(select(AuditEntry.action).order_by(AuditEntry.id)))
    assert actions == [
        *["device.renewal_asked"] * 2,
        "device.renewal_refuse",
        "device.renewal_approve",
        "device.renewal_asked",
    ]


def test_nobody_fills_the_list_of_one_device(database: Database, now_ms: int) -> None:
    for _ in range(4):
        ask(database, key(), now_ms)
    with pytest.raises(TooMany):
        ask(database, key(), now_ms)
    with database.reading() as session:
        assert len(renewal.waiting(session)) == 4


def test_a_device_that_is_cut_off_waits_for_nobody(database: Database, now_ms: int) -> None:
    ask(database, key(), now_ms)
    with database.session() as session:
        revoke(session, "d0001", now_ms)
    with database.session() as session:
        assert session.scalars(select(RenewalRequest)).all() == []
        with pytest.raises(Conflict, match="revoked"):
            renewal.decide(session, "d0001", None, APPROVED, ANNA, now_ms)
        with pytest.raises(NotFound):
            renewal.decide(session, "d0002", None, APPROVED, ANNA, now_ms)


@pytest.mark.parametrize("seconds", [9, 3600, 90 * 86_400])
def test_a_short_life_is_dated_back_less(tmp_path: Path, now_ms: int, seconds: int) -> None:
    """Else two thirds of it would be over before it begins."""
    life = seconds / 86_400
    ca = FleetCA.load_or_create(tmp_path, now_ms)
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = request.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    issued = ca.sign_device_csr(signed.public_bytes(serialization.Encoding.PEM).decode(), "d0001", now_ms, life)
    made = x509.load_pem_x509_certificate(issued.pem.encode())
    whole = (made.not_valid_after_utc - made.not_valid_before_utc).total_seconds()
    assert issued.not_after_ms == now_ms + seconds * 1000
    assert seconds < whole <= seconds * 1.1 + 1
