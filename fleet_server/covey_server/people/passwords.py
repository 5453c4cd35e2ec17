"""Passwords: what is kept of them (scrypt, RFC 7914), and which are too weak to be kept.

Invariants: checking takes the same work whether or not there is a password to check against; no more than two are worked on at
a time, so that logins cannot take the server's memory (32 MiB each) or all its cores.

What is kept reads `scrypt$LOG2_N$R$P$SALT$HASH`, salt and hash in base64. The cost is one of those that OWASP's password storage
cheat sheet names for scrypt; a hash of another cost is made anew at the next login.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import threading
import unicodedata
from dataclasses import dataclass

MIN_LENGTH = 12
MAX_LENGTH = 256
_SALT_BYTES = 16
_HASH_BYTES = 32
_AT_ONCE = threading.BoundedSemaphore(2)


@dataclass(frozen=True)
class Cost:
    """scrypt's parameters: N = 2^log2_n, block size r, parallelism p. Memory: 128·N·r bytes."""

    log2_n: int = 15
    r: int = 8
    p: int = 3


COST = Cost()


def hashed(password: str, cost: Cost = COST) -> str:
    """What is kept of a password."""
    salt = secrets.token_bytes(_SALT_BYTES)
    return "$".join(
        ["scrypt", str(cost.log2_n), str(cost.r), str(cost.p), _text(salt), _text(_scrypt(password, salt, cost))]
    )


def fits(password: str, kept: str | None) -> bool:
    """Whether this is the password. With `kept` None (nobody there, or none set) it is not, and saying so takes as long."""
    if kept is None:
        _scrypt(password, b"\0" * _SALT_BYTES, COST)
        return False
    cost, salt, expected = _read(kept)
    return hmac.compare_digest(_scrypt(password, salt, cost), expected)


def outdated(kept: str, cost: Cost = COST) -> bool:
    """Whether the hash was made at another cost than is made today."""
    return _read(kept)[0] != cost


def weakness(password: str, name: str) -> str:
    """Why this password of this person is not taken; "" if it is.

    >>> weakness("short", "anna"), weakness("correct horse battery staple", "anna")
    ('a password has at least 12 characters', '')
    """
    plain = _normal(password)
    if len(plain) < MIN_LENGTH:
        return f"a password has at least {MIN_LENGTH} characters"
    if len(password) > MAX_LENGTH:
        return f"a password has at most {MAX_LENGTH} characters"
    if len(set(plain.casefold())) < 5:
        return "this password repeats a few characters; take a longer sentence"
    if len(name) > 3 and len(plain.casefold().replace(name.casefold(), "")) < MIN_LENGTH // 2:
        return "this password is little more than the name"
    return ""


def _scrypt(password: str, salt: bytes, cost: Cost) -> bytes:
    n = 1 << cost.log2_n
    with _AT_ONCE:
        return hashlib.scrypt(
            _normal(password[:MAX_LENGTH]).encode("utf-8", "surrogatepass"),
            salt=salt,
            n=n,
            r=cost.r,
            p=cost.p,
            maxmem=2 * 128 * n * cost.r,
            dklen=_HASH_BYTES,
        )


def _normal(password: str) -> str:
    """The same characters, however the keyboard put them together."""
    return unicodedata.normalize("NFKC", password)


def _read(kept: str) -> tuple[Cost, bytes, bytes]:
    kind, log2_n, r, p, salt, value = kept.split("$")
    if kind != "scrypt":
        raise ValueError(f"a password is kept as {kind!r}, which is not known here")
    return Cost(int(log2_n), int(r), int(p)), base64.b64decode(salt), base64.b64decode(value)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
