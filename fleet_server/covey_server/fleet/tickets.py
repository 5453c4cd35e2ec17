"""Tickets to a build's files by HTTPS: who holds one may read the files of that build until it expires, and nothing else.

They travel in orders, over the devices' own sessions, and come back as bearer tokens: in no address and in no log. A ticket is
`EXPIRES.BUILD.MAC`: Unix time in seconds, the build's digest, HMAC-SHA256 by a key of this server. Files are content-addressed and
verified by whoever fetches them, so that a stolen ticket shows bytes and changes none.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

from covey_server.clock import Clock
from covey_server.errors import Unauthorized
from covey_server.fleet.durable import write_durably

_KEY_BYTES = 32


class Tickets:
    """Use `load_or_create`; the constructor only stores."""

    def __init__(self, key: bytes, clock: Clock, ttl_s: int) -> None:
        self._key = key
        self._clock = clock
        self._ttl_s = ttl_s

    @classmethod
    def load_or_create(cls, path: Path, clock: Clock, ttl_s: int) -> Tickets:
        """Raises `OSError`."""
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, secrets.token_bytes(_KEY_BYTES), 0o600)
        return cls(path.read_bytes(), clock, ttl_s)

    def issue(self, build: str) -> str:
        claim = f"{self._clock() // 1000 + self._ttl_s}.{build}"
        return f"{claim}.{self._mac(claim)}"

    def build_of(self, ticket: str) -> str:
        """The digest of the build. Raises `Unauthorized`."""
        claim, _, mac = ticket.rpartition(".")
        if not hmac.compare_digest(self._mac(claim).encode(), mac.encode()):
            raise Unauthorized("this is no ticket of this server")
        expires, _, build = claim.partition(".")
        if int(expires) * 1000 <= self._clock():
            raise Unauthorized("this ticket has expired")
        return build

    def _mac(self, claim: str) -> str:
        return hmac.new(self._key, b"covey-delivery " + claim.encode(), hashlib.sha256).hexdigest()
