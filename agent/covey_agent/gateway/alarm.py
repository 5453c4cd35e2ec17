"""A deadline that every request sets anew, for the price of an assignment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf


def _nobody() -> None:
    """Who is told by an alarm that was stopped."""


class Alarm:
    """Calls `ring` when the time that was set last has come. The loop's timer is not touched each time that it is set: one that goes off
    too early is set again, for the time that counts by then."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._at = inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf

    def set(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        """`at`: of the loop's clock."""
        self._at = at
        if at < self._timer_at:
            self._arm(loop, at)

    def stop(self) -> None:
        """For good; whom it would have rung is let go of."""
        self._ring = _nobody
        self._at = self._timer_at = inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = loop.call_at(at, self._look, loop), at

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer, self._timer_at = None, inf
        if loop.time() >= self._at:
            self._at = inf
            self._ring()
        elif self._at < inf:
            self._arm(loop, self._at)
