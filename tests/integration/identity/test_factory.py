"""A device that a factory has given a certificate joins without a token."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from covey_hil.testing.authority import Authority
from tests.integration.identity.conftest import DEVICE, Place, until


def born(authority: Authority, folder: Path, name: str) -> Path:
    """Certificate and key that a factory has put into a device, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(authority.name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=3650))
        .sign(authority.key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / f"{name}.pem"
    path.write_bytes(private + certificate.public_bytes(pem))
    return path


def test_it_joins_without_a_token_and_again_by_an_operators_approval(
    make: Callable[..., Place], tmp_path: Path
) -> None:
    factory = Authority(tmp_path)
    (tmp_path / "factory.pem").write_text(factory.pem)
    place = make(90 * 86_400.0, enrol=False, bootstrap_ca=str(tmp_path / "factory.pem"))
    mine = born(factory, tmp_path, DEVICE)
    words = ("--server", place.told["url"], "--bootstrap", str(mine), "--ca", place.told["ca"])
    assert place.command("enroll", *words).stdout.startswith(f"enrolled as {DEVICE}")
    place.start_agent()
    until("a connection", lambda: place.device()["online"])
    place.stop_agent()
    # Set back to how it left the factory: its key is another now, and somebody has to vouch for it.
    again = place.command("enroll", *words, "--force")
    assert again.returncode == 5
    assert "has enrolled before; an operator is to approve the key" in again.stderr
    assert place.device()["certificates"][0]["revoked_ms"] is None
    place.covey("device", "approve", DEVICE)
    assert place.command("enroll", *words, "--force").returncode == 0
    place.start_agent()
    until("a connection", lambda: place.device()["online"])
    certificates = place.device()["certificates"]
    assert [one["revoked_ms"] is None for one in certificates] == [True, False]
    # Wrong words are one line each.
    for bad, code in (
        (("--bootstrap", str(mine)), 2),
        (("--bootstrap", str(mine), "--ca", str(mine)), 2),
        (("--bootstrap", str(tmp_path / "factory.pem"), "--ca", place.told["ca"]), 5),
    ):
        done = place.command(
            "enroll", "--server", place.told["url"], *bad, "--force", "--state", str(tmp_path / "other")
        )
        assert done.returncode == code, done.stderr
        assert len(done.stderr.splitlines()) == 1
