"""An alarm rings at the time that was set last; one that was stopped keeps nobody alive."""

from __future__ import annotations

import asyncio
import gc
import selectors
import weakref
from collections.abc import Awaitable, Callable

import pytest

from covey_agent.gateway.alarm import Alarm


class Selector(selectors.SelectSelector):
    """Nothing is waited for: the time until the next timer has passed at once."""

    passed_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.passed_s += max(timeout or 0.0, 0.0)
        return super().select(0)


class Loop(asyncio.SelectorEventLoop):
    """A loop whose time is that of its timers alone, so that no machine is too slow for it."""

    def __init__(self) -> None:
        self._own = Selector()
        super().__init__(self._own)

    def time(self) -> float:
        return self._own.passed_s


class Owner:
    def __init__(self) -> None:
        self.rung: list[float] = []
        self.alarm = Alarm(self.ring)

    def ring(self) -> None:
        self.rung.append(asyncio.get_running_loop().time())


def play(scenario: Callable[[Loop, Owner], Awaitable[None]]) -> None:
    loop = Loop()

    async def run() -> None:
        await scenario(loop, Owner())

    try:
        loop.run_until_complete(run())
    finally:
        loop.close()


def test_it_rings_once_at_the_time_that_was_set_last() -> None:
    async def scenario(loop: Loop, owner: Owner) -> None:
        owner.alarm.set(loop, loop.time() + 0.02)
        owner.alarm.set(loop, loop.time() + 0.1)
        await asyncio.sleep(0.06)
        assert owner.rung == []
        await asyncio.sleep(0.2)
        assert len(owner.rung) == 1

    play(scenario)


@pytest.mark.parametrize("times", [[0.02], [5.0, 0.02], [0.01, 0.03], [0.01, 5.0, 0.03]])
def test_an_alarm_rings_once_at_the_time_that_was_set_last(times: list[float]) -> None:
    async def scenario(loop: Loop, owner: Owner) -> None:
        began = loop.time()
        for time in times:
            owner.alarm.set(loop, began + time)
        await asyncio.sleep(10)
        assert owner.rung == [pytest.approx(began + times[-1])]
        owner.alarm.set(loop, loop.time() + 0.01)
        owner.alarm.stop()
        await asyncio.sleep(10)
        assert len(owner.rung) == 1

    play(scenario)


def test_one_that_was_stopped_does_not_ring_and_keeps_nobody_alive() -> None:
    async def scenario(loop: Loop, owner: Owner) -> None:
        owner.alarm.set(loop, loop.time() + 0.02)
        owner.alarm.stop()
        await asyncio.sleep(0.05)
        assert owner.rung == []
        gone = weakref.ref(owner)
        gc.disable()  # the gateway makes so little garbage that the collector seldom comes
        try:
            del owner
            assert gone() is None
        finally:
            gc.enable()

    play(scenario)
