"""Renewals over devices' own sessions, with a real broker between: who is answered, and on whose topic."""

from __future__ import annotations

import time
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import select

from covey_contract.enrolment import RenewReply, RenewRequest, renewal_statement
from covey_contract.topics import Down, Up, up
from covey_contract.wire import decode, encode
from covey_server.db.tables import Certificate
from covey_server.fleet.enrolment import revoke


def request(device: Any, number: str) -> RenewRequest:
    """On a new key, signed by the device's own."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, device.name)])
    new = ec.generate_private_key(ec.SECP256R1())
    built = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(new, hashes.SHA256())
    csr = built.public_bytes(serialization.Encoding.PEM).decode()
    held = device.identity.certificate_pem
    proof = device.key.sign(renewal_statement(held, csr), ec.ECDSA(hashes.SHA256()))
    return RenewRequest(certificate_pem=held, csr_pem=csr, proof=proof, id=number)


def answered(device: Any) -> RenewReply:
    return decode(RenewReply, device.inbox[Down.RENEWAL].get(timeout=20))


def serials(world: Any, device: str) -> int:
    return len(world.rows(select(Certificate).where(Certificate.device == device)))


def test_a_request_that_is_said_twice_costs_one_certificate(world: Any, device: Any) -> None:
    asked = request(device, "r1")
    for _ in range(2):
        device.publish(Up.RENEWAL, asked)
    first, second = answered(device), answered(device)
    assert first == second
    assert (first.id, first.status) == ("r1", 200)
    assert serials(world, device.name) == 2


def test_with_anothers_request_a_device_gets_nothing_and_nor_does_the_other(world: Any, device: Any) -> None:
    other = world.device("press-8")
    other.connect()
    other.publish(Up.RENEWAL, request(device, "stolen"))
    reply = answered(other)
    assert (reply.id, reply.status, reply.certificate_pem) == ("stolen", 403, "")
    # On the other's topic, where it would be good, the broker lets it say nothing: the first that is heard there is the other's own.
    forged = encode(request(device, "forged"))
    other.client.publish(up(device.name, Up.RENEWAL), forged, 1).wait_for_publish(10)
    device.publish(Up.RENEWAL, request(device, "own"))
    assert (answered(device).id, device.inbox[Down.RENEWAL].qsize()) == ("own", 0)
    assert serials(world, device.name) == 2
    other.disconnect()


def test_a_revoked_device_is_refused_also_before_the_broker_has_heard_of_it(world: Any, device: Any) -> None:
    with world.database.session() as session:
        revoke(session, device.name, int(time.time() * 1000))
    device.publish(Up.RENEWAL, request(device, "r1"))
    assert answered(device).status == 403
    assert serials(world, device.name) == 1


def test_rubbish_costs_nobody_else_an_answer(world: Any, device: Any) -> None:
    for payload in (b"", b"{", b'{"certificate_pem":"x"}', b"\xff" * 100, b'{"v":2}', b"x" * 100_000):
        device.client.publish(up(device.name, Up.RENEWAL), payload, 1)
    device.publish(Up.RENEWAL, RenewRequest(certificate_pem="x", csr_pem="y", proof=b"z", id="bad"))
    assert answered(device).status == 422
    device.publish(Up.RENEWAL, request(device, "good"))
    assert answered(device).status == 200
    assert serials(world, device.name) == 2
