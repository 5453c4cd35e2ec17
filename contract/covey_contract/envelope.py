"""DSSE envelopes (Dead Simple Signing Envelope v1.0.2): exact bytes, their type, and signatures over both.

This module knows the format only; `covey_contract.signing` makes and checks signatures.
"""

from __future__ import annotations

import msgspec

from covey_contract.errors import DecodeError, TooLargeError
from covey_contract.wire import MAX_MESSAGE_BYTES


class Signature(msgspec.Struct, frozen=True):
    keyid: str
    sig: bytes


class Envelope(msgspec.Struct, frozen=True, rename={"payload_type": "payloadType"}):
    """A signed payload. Bytes are base64 on the wire."""

    payload: bytes
    payload_type: str
    signatures: tuple[Signature, ...]


def pae(payload_type: str, payload: bytes) -> bytes:
    """Pre-authentication encoding, what is signed: `DSSEv1 SP len(type) SP type SP len(body) SP body`."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


_decoder = msgspec.json.Decoder(Envelope)


def encode_envelope(envelope: Envelope) -> bytes:
    return msgspec.json.encode(envelope)


def decode_envelope(data: bytes) -> Envelope:
    """Raises `DecodeError` for anything that is not an envelope. Nothing is verified here."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise TooLargeError(f"envelope of {len(data)} bytes; at most {MAX_MESSAGE_BYTES}")
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise DecodeError(f"envelope: {error}") from error
