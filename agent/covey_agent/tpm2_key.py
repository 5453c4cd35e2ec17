"""A TPM's key as the `cryptography` package knows keys, so that it makes the certificate request: what the provider makes is not what every parser reads."""

from __future__ import annotations

from typing import Any, NoReturn

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from covey_agent import tpm2


class TpmKey(ec.EllipticCurvePrivateKey):
    """P-256. It signs with SHA-256, and shows nothing."""

    def __init__(self, key_pem: bytes) -> None:
        self._key_pem = key_pem

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        if not isinstance(signature_algorithm.algorithm, hashes.SHA256):
            raise ValueError("a TPM's key signs with SHA-256 here")
        return tpm2.sign(self._key_pem, bytes(data))

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Raises `ValueError` for a key that is none."""
        key = serialization.load_der_public_key(tpm2.public(self._key_pem))
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("its key is no P-256 key")
        return key

    @property
    def curve(self) -> ec.EllipticCurve:
        return ec.SECP256R1()

    @property
    def key_size(self) -> int:
        return self.curve.key_size

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> NoReturn:
        raise NotImplementedError(f"{algorithm} with {peer_public_key}: a TPM's key signs alone")

    def private_numbers(self) -> NoReturn:
        raise NotImplementedError("a TPM does not show its keys")

    def private_bytes(self, *_: object) -> bytes:
        """As the TPM has wrapped it."""
        return self._key_pem

    def __copy__(self) -> TpmKey:
        return self

    def __deepcopy__(self, _memo: dict[Any, Any]) -> TpmKey:
        return self
