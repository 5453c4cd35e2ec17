"""The device's clock, put right by the server's signed time where it is wrong: a board without a battery wakes up in 1971, a bad one in 2040.

Invariants: a reply counts only if the director signed it for this device and for the nonce of the newest question, if it came soon, and if
it is not earlier than what signed metadata has shown. The system's clock itself is not set. Until a reply comes the system's clock is
what there is, never below the floor where that matters.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable

from covey_contract.envelope import decode_envelope
from covey_contract.errors import ContractError
from covey_contract.messages import TIME_TYPE, TimeReply, TimeRequest
from covey_contract.signing import open_envelope

log = logging.getLogger(__name__)

# A clock that is off by less is left alone: orders and metadata live for hours.
WRONG_MS = 300_000
# An answer that took longer tells too little.
_SOON_S = 60.0


class TrustedClock:
    """Call it for Unix milliseconds. `monotonic` counts seconds; `floor` is the newest time that signed metadata has shown."""

    def __init__(
        self, device: str, system: Callable[[], int], monotonic: Callable[[], float], floor: Callable[[], int]
    ) -> None:
        self._device = device
        self._system = system
        self._monotonic = monotonic
        self._floor = floor
        self._nonce: str | None = None
        self._asked = 0.0
        # (signed time, monotonic seconds then); set where the system's clock was wrong. Replaced as a whole: other threads read it.
        self._signed: tuple[int, float] | None = None

    def __call__(self) -> int:
        return self.corrected() or self._system()

    def corrected(self) -> int | None:
        """The time by the newest signed reply, if the system's clock is wrong."""
        signed = self._signed
        return None if signed is None else signed[0] + int((self._monotonic() - signed[1]) * 1000)

    def ask(self) -> TimeRequest:
        """A new question; the one before counts no longer."""
        self._nonce = secrets.token_hex(32)
        self._asked = self._monotonic()
        return TimeRequest(nonce=self._nonce)

    def heard(self, payload: bytes, directors: Iterable[bytes]) -> bool:
        """Whether the reply counts."""
        try:
            reply = open_envelope(TimeReply, decode_envelope(payload), TIME_TYPE, directors)
        except ContractError as error:
            log.warning("a time is ignored: %s", error)
            return False
        now = self._monotonic()
        fresh = reply.device == self._device and reply.nonce == self._nonce and now - self._asked <= _SOON_S
        if not fresh or reply.time_ms < self._floor():
            log.warning(
                "a time is ignored: it answers no question of this device, or is earlier than what was signed before"
            )
            return False
        self._nonce = None
        off_ms = self._system() - reply.time_ms
        if abs(off_ms) < WRONG_MS:
            self._signed = None
            return True
        if self._signed is None:
            log.warning("the system's clock is %d s off; the server's signed time counts", off_ms // 1000)
        self._signed = (reply.time_ms, now)
        return True
