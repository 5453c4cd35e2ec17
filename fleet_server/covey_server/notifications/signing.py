"""Signatures of webhooks, after the Standard Webhooks specification (standardwebhooks.com, symmetric scheme v1).

Signed is `ID.TIMESTAMP.BODY` by HMAC-SHA256; the header `webhook-signature` holds one or several `v1,BASE64`, separated by
blanks: while a secret is being changed, one of the new and one of the old. A secret is written `whsec_BASE64`.

>>> secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
>>> signature([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
'v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE='
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence

PREFIX = "whsec_"
_BYTES = 32


def new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(_BYTES)).decode()


def key_of(secret: str) -> bytes:
    """The bytes of a secret. Raises `ValueError` if it is none, or has not between 24 and 64 of them."""
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except ValueError as error:
        raise ValueError("a webhook's secret is whsec_ and base64") from error
    if not secret.startswith(PREFIX) or not 24 <= len(key) <= 64:
        raise ValueError("a webhook's secret is whsec_ and the base64 of 24 to 64 bytes")
    return key


def signature(held: Sequence[str], message_id: str, timestamp_s: int, body: bytes) -> str:
    """The header's value: a signature by each of the secrets."""
    signed = f"{message_id}.{timestamp_s}.".encode() + body
    made = (hmac.digest(key_of(secret), signed, hashlib.sha256) for secret in held)
    return " ".join(f"v1,{base64.b64encode(one).decode()}" for one in made)
