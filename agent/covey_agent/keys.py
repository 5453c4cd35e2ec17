"""The device's P-256 keys: in a file, or wrapped by a TPM (`tpm2`). Which a key is, its PEM tells; the next one is of the same kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from covey_agent import tpm2

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec


def make_key_and_request(kept: bytes | None, name: str, *, in_tpm: bool = False) -> tuple[bytes, str]:
    """A key (the kept one, if it can be read and is of that kind) and a certificate request for it, both PEM. Raises `TpmError`."""
    # Imported when it is needed: a daemon at rest does without.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import NameOID

    key_pem = kept if kept is not None and tpm2.wraps(kept) is in_tpm else None
    try:
        key = load(key_pem) if key_pem is not None else None
    except ValueError:
        key = None
    if key_pem is None or key is None:
        key_pem = tpm2.make() if in_tpm else _make()
        key = load(key_pem)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return key_pem, request.public_bytes(serialization.Encoding.PEM).decode()


def load(key_pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Raises `ValueError`."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if tpm2.wraps(key_pem):
        from covey_agent.tpm2_key import TpmKey

        return TpmKey(key_pem)
    key = serialization.load_pem_private_key(key_pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("its key is no P-256 key")
    return key


def same_key(certificate: x509.Certificate, key_pem: bytes) -> bool:
    """Whether the certificate is for this private key. Raises `ValueError` and `TpmError`."""
    from cryptography.hazmat.primitives import serialization

    spki = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return certificate.public_key().public_bytes(*spki) == load(key_pem).public_key().public_bytes(*spki)


def sign(key_pem: bytes, statement: bytes) -> bytes:
    """ECDSA with SHA-256, in DER. Raises `ValueError` and `TpmError`."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    return load(key_pem).sign(statement, ec.ECDSA(hashes.SHA256()))


def _make() -> bytes:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
