"""How long no application has asked for an inference: what an order to wait for an idle device goes by."""

from __future__ import annotations

from collections.abc import Callable


class Activity:
    """Counted from the gateway's start on. `clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._in_flight = 0
        self._last = clock()

    def begin(self) -> None:
        self._in_flight += 1

    def end(self) -> None:
        self._in_flight -= 1
        self._last = self._clock()

    def __enter__(self) -> None:
        self.begin()

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def idle_s(self) -> float:
        return 0.0 if self._in_flight else max(0.0, self._clock() - self._last)
