"""Waiting for something on the server, with a deadline. A server that restarts meanwhile is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from covey_client.errors import ClientError, Unreachable

T = TypeVar("T")
# A server may be gone this long (a restart, a broken line) before waiting for it is given up.
PATIENCE_S = 30.0


class TimedOut(ClientError):
    """What was waited for did not come about in time."""


def wait(
    look: Callable[[], T],
    done: Callable[[T], bool],
    *,
    timeout_s: float,
    every_s: float = 0.5,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Look until `done`; what was seen last. Raises `TimedOut`, or `Unreachable` if no server answers for `PATIENCE_S`."""
    deadline = clock() + timeout_s
    answered = clock()
    while True:
        try:
            seen = look()
            answered = clock()
            if done(seen):
                return seen
        except Unreachable:
            if clock() - answered > min(PATIENCE_S, timeout_s):
                raise
        left = deadline - clock()
        if left <= 0:
            raise TimedOut(f"not within {timeout_s:g} s")
        sleep(min(every_s, left))
