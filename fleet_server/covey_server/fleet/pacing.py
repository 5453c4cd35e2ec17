"""Token buckets: how much may go now, given how much went before. Time is a parameter, in seconds.

>>> bucket = TokenBucket(rate=100.0, burst=50.0)
>>> bucket.pause(now=0.0)
0.0
>>> bucket.take(150.0, now=0.0)
>>> bucket.pause(now=0.0)
1.0
"""

from __future__ import annotations


class TokenBucket:
    """Refilled at `rate` a second up to `burst`; taking may overdraw it once, then it is paused until it is level again."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._at: float | None = None

    def pause(self, now: float) -> float:
        """Seconds until something may be taken; 0: now."""
        self._refill(now)
        return max(0.0, -self._level / self._rate)

    def take(self, amount: float, now: float) -> None:
        self._refill(now)
        self._level -= amount

    def _refill(self, now: float) -> None:
        if self._at is not None:
            self._level = min(self._burst, self._level + max(0.0, now - self._at) * self._rate)
        self._at = now
