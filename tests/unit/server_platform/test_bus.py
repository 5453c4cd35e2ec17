from __future__ import annotations

import asyncio
import threading

from covey_server.bus import Bus


def test_everybody_hears_and_nobody_hears_from_before() -> None:
    bus = Bus()
    bus.publish("device", "early")
    with bus.subscribe() as one, bus.subscribe() as other:
        bus.publish("build", "7")
        assert one.get(1) == other.get(1) == ("build", "7")
        assert one.get(0) is None
    bus.publish("build", "8")
    assert one.get(0) is None


def test_a_slow_subscriber_loses_the_oldest() -> None:
    bus = Bus()
    with bus.subscribe() as subscription:
        for number in range(5000):
            bus.publish("telemetry", str(number))
        heard = []
        while (hint := subscription.get(0)) is not None:
            heard.append(int(hint[1]))
    assert heard == list(range(5000 - len(heard), 5000))


def test_a_coroutine_is_woken_by_a_thread() -> None:
    bus = Bus()

    async def listen() -> tuple[str, str] | None:
        with bus.subscribe() as subscription:
            assert await subscription.get_async(0.001) is None
            timer = threading.Timer(0.02, bus.publish, ["campaign", "digits"])
            timer.start()
            heard = await subscription.get_async(10)
            timer.join()
            return heard

    assert asyncio.run(listen()) == ("campaign", "digits")
