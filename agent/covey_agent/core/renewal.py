"""When a certificate is to be renewed, and when its end is to be warned of. Pure: times are Unix times in milliseconds.

A certificate is renewed at about two thirds of its life; when exactly is drawn from the device's id and the certificate, so that a fleet that
was enrolled in an hour does not come back in an hour, and a device that is restarted does not draw again.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

_DUE = 2 / 3
# Of its life, as much before as after: nine days of ninety.
_SPREAD = 0.1
# After a new certificate none is asked for by the clock for so much of its life, by a clock that nobody sets. By a right clock the next one is
# not due before: who finds it due is wrong about the time.
_REST = 0.4
_WARN_MS = 14 * 86_400_000
# Certificates of a week are not in their last fortnight all their life.
_WARN = 1 / 6


class Certificate(NamedTuple):
    """What the decisions need of one."""

    serial: int
    begins_ms: int
    ends_ms: int

    @property
    def life_ms(self) -> int:
        return max(self.ends_ms - self.begins_ms, 0)

    @property
    def rest_s(self) -> float:
        """So long after it has come the clock is not asked."""
        return self.life_ms * _REST / 1000

    def due_ms(self, device: str) -> int:
        """
        >>> one = Certificate(7, 0, 90 * 86_400_000)
        >>> 55 < one.due_ms("press-7") / 86_400_000 < 65
        True
        """
        digest = hashlib.sha256(f"{device} {self.serial:x}".encode()).digest()
        lot = int.from_bytes(digest[:8], "big") / 2**64
        return self.begins_ms + int(self.life_ms * (_DUE + _SPREAD * (lot - 0.5)))

    def has_expired(self, now_ms: int) -> bool:
        return now_ms >= self.ends_ms

    def is_ending(self, now_ms: int) -> bool:
        """In its last fourteen days, or the last sixth of a shorter life."""
        return now_ms >= self.ends_ms - min(_WARN_MS, self.life_ms * _WARN)


def pause_s(failures: int, first_s: float, most_s: float, lot: float) -> float:
    """Until the next try; doubles, and `lot` in [0, 1) spreads it over its later half."""
    return float(min(most_s, first_s * 2.0 ** min(failures - 1, 20))) * (0.5 + lot / 2)
