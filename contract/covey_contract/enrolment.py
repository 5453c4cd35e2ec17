"""How a device joins: it presents a one-time claim token and a certificate request, and gets its identity; and how it keeps that alive.

A claim token is `covey1.FINGERPRINT.SECRET`. The fingerprint (SHA-256, hex, of the fleet's CA certificate in DER) lets a device
know the server before it has any certificate; the secret is known to the device and, as a hash, to the server.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, NamedTuple

import msgspec

from covey_contract.errors import DecodeError
from covey_contract.facts import Facts
from covey_contract.messages import ShortText
from covey_contract.signing import Trust
from covey_contract.wire import Message

Pem = Annotated[str, msgspec.Meta(max_length=16_384)]


class ClaimToken(NamedTuple):
    fingerprint: str
    secret: str

    def __str__(self) -> str:
        return f"covey1.{self.fingerprint}.{self.secret}"


def parse_claim_token(text: str) -> ClaimToken:
    """Raises `DecodeError`, without repeating the secret, if `text` is no claim token."""
    match = re.fullmatch(r"covey1\.([0-9a-f]{64})\.([A-Za-z0-9_-]{22,86})", text.strip())
    if match is None:
        raise DecodeError("this is not a claim token (covey1.FINGERPRINT.SECRET)")
    return ClaimToken(match[1], match[2])


class EnrolRequest(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Body of `POST /api/v1/enrol`. The certificate request is P-256; its subject is ignored, the server names the device."""

    MAX_BYTES = 64 * 1024

    secret: Annotated[str, msgspec.Meta(max_length=128)]
    csr_pem: Pem
    facts: Facts
    device: ShortText | None = None  # the id that the device would like; a token may be bound to one


class Broker(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where the device connects to. Its client id and user name are its device id."""

    host: str
    port: int
    tls: bool = True


class EnrolResponse(Message, frozen=True, kw_only=True, omit_defaults=True):
    MAX_BYTES = 64 * 1024

    device: ShortText
    certificate_pem: Pem
    ca_pem: Pem
    broker: Broker
    trust: Trust
    root: bytes = b""  # the newest root of the repository of releases (TUF); empty: this server has none


class RenewRequest(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Body of `POST /api/v1/renew`, and said over MQTT: a certificate on a new key, for who shows that it has the key of the one before.

    `certificate_pem` may have expired: then an operator decides. The request's common name is the device's id. Repeating a request is
    harmless: what comes of it is of use to the holder of the new key alone.
    """

    MAX_BYTES = 64 * 1024

    id: ShortText = ""  # over MQTT: what its answer is known by
    certificate_pem: Pem
    csr_pem: Pem
    proof: Annotated[
        bytes, msgspec.Meta(max_length=256)
    ]  # ECDSA with SHA-256 (DER) by the certificate's key over `renewal_statement`


class RenewResponse(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Status 200. While an operator is to decide, the status is 202 with a problem document that says so."""

    MAX_BYTES = 64 * 1024

    certificate_pem: Pem


class RenewReply(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to a `RenewRequest` that came over MQTT. `status` is what HTTP's would be: 200 with the certificate, else with `detail`, one line
    for people. Not signed: the certificate is, and it alone is believed; a false refusal costs the device a pause."""

    MAX_BYTES = 64 * 1024

    id: ShortText
    status: Annotated[int, msgspec.Meta(ge=100, le=599)]
    certificate_pem: Pem = ""
    detail: Annotated[str, msgspec.Meta(max_length=2000)] = ""


def renewal_statement(certificate_pem: str, csr_pem: str) -> bytes:
    """What the key of the certificate signs to have it followed by one on the key of the request."""
    digests = (hashlib.sha256(text.encode()).digest() for text in (certificate_pem, csr_pem))
    return b"covey renewal 1\0" + b"".join(digests)
