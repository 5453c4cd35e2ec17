"""Ed25519 signatures on DSSE envelopes, and the keys a device trusts. The one module that needs `cryptography`.

A device trusts *roles*: `release` keys may sign manifests, `director` keys may sign assignments and commands. A director
alone cannot make a device run bytes that no release key has signed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from covey_contract.envelope import Envelope, Signature, pae
from covey_contract.errors import SignatureError
from covey_contract.wire import Message, decode, encode

M = TypeVar("M", bound=Message)


def key_id(public: bytes) -> str:
    """The name of a key: SHA-256 in hex of its 32 raw bytes. Readers treat it as opaque."""
    return hashlib.sha256(public).hexdigest()


class Trust(msgspec.Struct, frozen=True, kw_only=True):
    """The raw public keys (32 bytes each) that may sign for each role. One good signature suffices."""

    release: tuple[bytes, ...]
    director: tuple[bytes, ...]


def public_key(private: Ed25519PrivateKey) -> bytes:
    """The 32 raw bytes of the public half."""
    return private.public_key().public_bytes_raw()


def seal(message: Message, payload_type: str, keys: Iterable[Ed25519PrivateKey]) -> Envelope:
    """The message in an envelope signed by every one of `keys`."""
    return seal_bytes(encode(message), payload_type, keys)


def seal_bytes(payload: bytes, payload_type: str, keys: Iterable[Ed25519PrivateKey]) -> Envelope:
    signed = pae(payload_type, payload)
    signatures = tuple(Signature(keyid=key_id(public_key(key)), sig=key.sign(signed)) for key in keys)
    return Envelope(payload=payload, payload_type=payload_type, signatures=signatures)


def verify(envelope: Envelope, payload_type: str, keys: Iterable[bytes]) -> bytes:
    """The payload, if the envelope has the given type and a good signature by one of `keys`; else `SignatureError`."""
    if envelope.payload_type != payload_type:
        raise SignatureError(f"the envelope holds {envelope.payload_type!r}, not {payload_type!r}")
    trusted = {key_id(key): key for key in keys}
    signed = pae(envelope.payload_type, envelope.payload)
    for signature in envelope.signatures:
        key = trusted.get(signature.keyid)
        if key is None:
            continue
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(signature.sig, signed)
        except (InvalidSignature, ValueError):
            continue
        return envelope.payload
    raise SignatureError(f"no good signature by one of the {len(trusted)} keys trusted for {payload_type}")


def open_envelope(kind: type[M], envelope: Envelope, payload_type: str, keys: Iterable[bytes]) -> M:
    """Verify, then decode. Raises `SignatureError` or `DecodeError`; unverified bytes are never decoded."""
    return decode(kind, verify(envelope, payload_type, keys))
