"""Whose devices may enrol without a token: authorities of factories, and the certificates that they put into devices.

A factory's certificate names the device by its common name, and buys one thing: the first enrolment of just that device. The broker does not know
these authorities.
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from covey_server.errors import StartError
from covey_server.fleet.durable import write_durably

_MAX_BYTES = 1 << 20
CLIENTS_FILE = "clients.pem"


class Factories:
    """Authorities whose certificates are taken, each directly."""

    def __init__(self, authorities: list[x509.Certificate]) -> None:
        self._authorities = authorities

    @classmethod
    def load(cls, file: str) -> Factories:
        """Of a file in PEM; none if it is not named. Raises `StartError`."""
        if not file:
            return cls([])
        try:
            with Path(file).open("rb") as opened:
                found = x509.load_pem_x509_certificates(opened.read(_MAX_BYTES))
        except (OSError, ValueError) as error:
            raise StartError(f"setting bootstrap_ca: {file} holds no certificates in PEM: {error}") from error
        for one in found:
            if not _is_authority(one):
                raise StartError(f"setting bootstrap_ca: {one.subject.rfc4514_string()} is no authority's certificate")
        return cls(found)

    def name_of(self, certificate: x509.Certificate) -> str | None:
        """The device that a factory's certificate is for; None: it is not one."""
        for authority in self._authorities:
            try:
                certificate.verify_directly_issued_by(authority)
            except (ValueError, TypeError, InvalidSignature):
                continue
            names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
            return str(names[0].value) if len(names) == 1 else None
        return None

    def trusted_file(self, own: Path) -> Path:
        """Of all authorities whose certificates TLS is to take from clients: the fleet's `own`, and the factories'."""
        if not self._authorities:
            return own
        path = own.with_name(CLIENTS_FILE)
        write_durably(path, own.read_bytes() + b"".join(one.public_bytes(Encoding.PEM) for one in self._authorities))
        return path


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False
