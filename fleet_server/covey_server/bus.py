"""Hints between the parts of the server: "something about this device has changed, look again".

Invariants: publishing never blocks and never fails; a slow subscriber loses the oldest hints, never the newest; the database is
the truth, so a lost hint costs a delay and nothing else. Topics: "device", "build", "campaign", "assignment", "telemetry".

>>> bus = Bus()
>>> with bus.subscribe() as subscription:
...     bus.publish("device", "press-7")
...     subscription.get(timeout=1)
('device', 'press-7')
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from types import TracebackType

_BACKLOG = 1024


class Subscription:
    """All hints published since it was entered. One reader: either a thread (`get`) or a coroutine (`get_async`)."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._hints: deque[tuple[str, str]] = deque(maxlen=_BACKLOG)
        self._changed = threading.Condition()
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def __enter__(self) -> Subscription:
        self._bus.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bus.remove(self)

    def get(self, timeout: float) -> tuple[str, str] | None:
        """The next hint as (topic, key), waiting up to `timeout` seconds; None if none came."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._hints), timeout)
            return self._hints.popleft() if self._hints else None

    async def get_async(self, timeout: float) -> tuple[str, str] | None:  # noqa: ASYNC109 - the twin of `get`
        """As `get`, in a coroutine."""
        event = asyncio.Event()
        with self._changed:
            if self._hints:
                return self._hints.popleft()
            self._waiter = (asyncio.get_running_loop(), event)
        try:
            await asyncio.wait_for(event.wait(), timeout)
        except TimeoutError:
            pass
        finally:
            with self._changed:
                self._waiter = None
        with self._changed:
            return self._hints.popleft() if self._hints else None

    def put(self, hint: tuple[str, str]) -> None:
        with self._changed:
            self._hints.append(hint)
            self._changed.notify()
            # Under the lock, so that the loop cannot have ended its wait in between.
            if self._waiter is not None:
                loop, event = self._waiter
                if not loop.is_closed():
                    loop.call_soon_threadsafe(event.set)


class Bus:
    """Fan-out to every living subscription, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscriptions: tuple[Subscription, ...] = ()

    def publish(self, topic: str, key: str = "") -> None:
        for subscription in self._subscriptions:
            subscription.put((topic, key))

    def subscribe(self) -> Subscription:
        """A context manager; hints arrive from the moment it is entered."""
        return Subscription(self)

    def add(self, subscription: Subscription) -> None:
        with self._lock:
            self._subscriptions = (*self._subscriptions, subscription)

    def remove(self, subscription: Subscription) -> None:
        with self._lock:
            self._subscriptions = tuple(one for one in self._subscriptions if one is not subscription)
