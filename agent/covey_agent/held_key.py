"""A key that something else holds (a TPM, a token), as the `cryptography` package knows keys, so that it makes the certificate request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec


class HeldKey(ec.EllipticCurvePrivateKey):
    """P-256. It signs with SHA-256, and shows nothing. `public` gives the public key, `sign_data` signs: ECDSA, in DER."""

    def __init__(
        self, key_pem: bytes, public: Callable[[], ec.EllipticCurvePublicKey], sign_data: Callable[[bytes], bytes]
    ) -> None:
        self._key_pem = key_pem
        self._public = public
        self._sign_data = sign_data

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        if not isinstance(signature_algorithm.algorithm, hashes.SHA256):
            raise ValueError("a key that is held elsewhere signs with SHA-256 here")
        return self._sign_data(bytes(data))

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Raises `ValueError` for a key that is none."""
        return self._public()

    @property
    def curve(self) -> ec.EllipticCurve:
        return ec.SECP256R1()

    @property
    def key_size(self) -> int:
        return self.curve.key_size

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> NoReturn:
        raise NotImplementedError(f"{algorithm} with {peer_public_key}: a key that is held elsewhere signs alone")

    def private_numbers(self) -> NoReturn:
        raise NotImplementedError("a key that is held elsewhere is not shown")

    def private_bytes(self, *_: object) -> bytes:
        """What stands for it on disk."""
        return self._key_pem

    def __copy__(self) -> HeldKey:
        return self

    def __deepcopy__(self, _memo: dict[Any, Any]) -> HeldKey:
        return self
