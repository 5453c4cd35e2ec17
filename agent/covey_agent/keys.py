"""The device's P-256 keys: in a file, wrapped by a TPM (`tpm2`), or in a PKCS#11 token (`pkcs11`). Which a key is, its file tells; the next one is of
the same kind."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from covey_agent import tpm2
from covey_agent.errors import UsageError
from covey_agent.pkcs11 import address, key_file

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

FILE, TPM, TOKEN = "file", "tpm2", address.SCHEME


def check_where(text: str) -> str:
    """Where keys shall be: `file`, `tpm2`, or an address in a PKCS#11 token. Raises `UsageError`."""
    if text in (FILE, TPM):
        return text
    if not text.startswith(TOKEN):
        raise UsageError(f"a key is in a {FILE}, by {TPM}, or at an address pkcs11:…")
    found = address.parse(text)
    if found.id:
        raise UsageError("pkcs11: id is chosen by the agent; leave it out")
    return str(found)


def where(key_pem: bytes) -> str:
    """Where this key is. Raises `ValueError` or `UsageError` if it stands for none."""
    if tpm2.wraps(key_pem):
        return TPM
    return str(key_file.address_of(key_pem)) if key_file.wraps(key_pem) else FILE


def prepare(key_pem: bytes) -> None:
    """Let TLS contexts that are made from now on use this key, which may be elsewhere. Raises `AgentError` and `ValueError`."""
    if tpm2.wraps(key_pem):
        tpm2.prepare()
    elif key_file.wraps(key_pem):
        from covey_agent.pkcs11 import handshake

        handshake.hold(key_pem)


def make_key_and_request(kept: bytes | None, name: str, place: str = FILE) -> tuple[bytes, str]:
    """A key (the kept one, if it can be used and is of that place) and a certificate request for it, both PEM. Raises `AgentError`."""
    # Imported when it is needed: a daemon at rest does without.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import NameOID

    key_pem = kept if kept is not None and _fits(kept, place) else None
    try:
        key = load(key_pem) if key_pem is not None else None
    except ValueError:
        key = None
    if key_pem is None or key is None:
        key_pem = _make(place)
        key = load(key_pem)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return key_pem, request.public_bytes(serialization.Encoding.PEM).decode()


def load(key_pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Raises `ValueError`."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if tpm2.wraps(key_pem):
        return _of_tpm(key_pem)
    if key_file.wraps(key_pem):
        return _of_token(key_pem)
    key = serialization.load_pem_private_key(key_pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("its key is no P-256 key")
    return key


def same_key(certificate: x509.Certificate, key_pem: bytes) -> bool:
    """Whether the certificate is for this private key. Raises `ValueError` and `AgentError`."""
    from cryptography.hazmat.primitives import serialization

    spki = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return certificate.public_key().public_bytes(*spki) == load(key_pem).public_key().public_bytes(*spki)


def sign(key_pem: bytes, statement: bytes) -> bytes:
    """ECDSA with SHA-256, in DER. Raises `ValueError` and `AgentError`."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    return load(key_pem).sign(statement, ec.ECDSA(hashes.SHA256()))


def look(key_pem: bytes) -> str:
    """For people: where the key is, and who can have it; a token's is looked for. Raises `AgentError` and `ValueError`."""
    if tpm2.wraps(key_pem):
        return "in the TPM, which does not give it away"
    if key_file.wraps(key_pem):
        from covey_agent.pkcs11 import token

        return token.look(key_file.address_of(key_pem))
    return "private, readable by this user alone"


def sweep(in_use: bytes, named: Sequence[bytes]) -> None:
    """Where this key is in a token, remove from there what this installation has made and nothing in `named` stands for. Raises
    `AgentError` and `ValueError`."""
    if key_file.wraps(in_use):
        from covey_agent.pkcs11 import token

        keep = {key_file.address_of(one).id for one in named if key_file.wraps(one)}
        token.sweep(key_file.address_of(in_use), keep)


def _fits(kept: bytes, place: str) -> bool:
    try:
        if not key_file.wraps(kept) or not place.startswith(TOKEN):
            return where(kept) == place
        found = key_file.address_of(kept)
        if not found.follows(address.parse(place)):
            return False
    except (ValueError, UsageError):
        return False
    from covey_agent.pkcs11 import token

    return token.holds(found)


def _make(place: str) -> bytes:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if place == TPM:
        return tpm2.make()
    if place.startswith(TOKEN):
        from covey_agent.pkcs11 import token

        return key_file.write(*token.make(address.parse(place)))
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _of_tpm(key_pem: bytes) -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from covey_agent.held_key import HeldKey

    def public() -> ec.EllipticCurvePublicKey:
        key = serialization.load_der_public_key(tpm2.public(key_pem))
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("its key is no P-256 key")
        return key

    return HeldKey(key_pem, public, lambda data: tpm2.sign(key_pem, data))


def _of_token(key_pem: bytes) -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    from covey_agent.held_key import HeldKey
    from covey_agent.pkcs11 import token

    found = key_file.address_of(key_pem)
    public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), key_file.point_of(key_pem))
    return HeldKey(key_pem, lambda: public, lambda data: token.sign(found, hashlib.sha256(data).digest()))
