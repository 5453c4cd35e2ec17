"""Whom this device believes: as enrolment said it, and for orders as the newest root of releases says it."""

from __future__ import annotations

import logging

import msgspec

from covey_contract.signing import Trust

log = logging.getLogger(__name__)


class Keyring:
    def __init__(self, trust: Trust) -> None:
        self.trust = trust

    @property
    def directors(self) -> tuple[bytes, ...]:
        """The keys for orders."""
        return self.trust.director

    def follow(self, directors: tuple[bytes, ...]) -> None:
        """The newest root names these; none: there is no root, and nothing changes."""
        if directors and directors != self.trust.director:
            log.warning("the keys for orders are others now, by the newest root")
            self.trust = msgspec.structs.replace(self.trust, director=directors)
