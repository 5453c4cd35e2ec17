"""An alarm rings at the time that was set last; one that was stopped keeps nobody alive."""

from __future__ import annotations

import asyncio
import gc
import weakref

from covey_agent.gateway.alarm import Alarm


class Owner:
    def __init__(self) -> None:
        self.rung = 0
        self.alarm = Alarm(self.ring)

    def ring(self) -> None:
        self.rung += 1


def test_it_rings_once_at_the_time_that_was_set_last() -> None:
    async def run() -> None:
        loop, owner = asyncio.get_running_loop(), Owner()
        owner.alarm.set(loop, loop.time() + 0.02)
        owner.alarm.set(loop, loop.time() + 0.1)
        await asyncio.sleep(0.06)
        assert owner.rung == 0
        await asyncio.sleep(0.2)
        assert owner.rung == 1

    asyncio.run(run())


def test_one_that_was_stopped_does_not_ring_and_keeps_nobody_alive() -> None:
    async def run() -> None:
        loop, owner = asyncio.get_running_loop(), Owner()
        owner.alarm.set(loop, loop.time() + 0.02)
        owner.alarm.stop()
        await asyncio.sleep(0.05)
        assert owner.rung == 0
        gone = weakref.ref(owner)
        gc.disable()  # the gateway makes so little garbage that the collector seldom comes
        try:
            del owner
            assert gone() is None
        finally:
            gc.enable()

    asyncio.run(run())
