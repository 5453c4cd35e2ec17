"""Token buckets: how much may go now, given how much went before. Time is a parameter, in seconds.

>>> bucket = TokenBucket(rate=100.0, burst=50.0)
>>> bucket.pause(now=0.0)
0.0
>>> bucket.take(150.0, now=0.0)
>>> bucket.pause(now=0.0)
1.0
"""

from __future__ import annotations

import threading
from collections import OrderedDict


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


class Gate:
    """At most `per_minute` passes a minute for each key, a minute's worth at once. Remembers the latest keys only."""

    def __init__(self, per_minute: int, keys: int = 10_000) -> None:
        self._per_minute = per_minute
        self._keys = keys
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def passes(self, key: str, now: float) -> bool:
        with self._lock:
            bucket = self._buckets.setdefault(key, TokenBucket(self._per_minute / 60, self._per_minute - 1))
            self._buckets.move_to_end(key)
            if len(self._buckets) > self._keys:
                self._buckets.popitem(last=False)
            if bucket.pause(now) > 0:
                return False
            bucket.take(1.0, now)
            return True
