"""Orders go before reports, but not for ever."""

from __future__ import annotations

import threading
import time

from covey_server.fleet.precedence import Precedence


def test_whoever_stores_waits_until_all_orders_are_given_out() -> None:
    precedence = Precedence(patience_s=30.0)
    precedence.claim("campaigns")
    precedence.claim("campaigns")
    precedence.claim("sending")
    passed = threading.Event()

    def store() -> None:
        precedence.give_way()
        passed.set()

    thread = threading.Thread(target=store)
    thread.start()
    precedence.claim("campaigns", wanted=False)
    assert not passed.wait(0.1)
    precedence.claim("sending", wanted=False)
    assert passed.wait(10)
    thread.join()


def test_nobody_waits_for_ever() -> None:
    precedence = Precedence(patience_s=0.05)
    precedence.claim("campaigns")
    began = time.monotonic()
    precedence.give_way()
    assert time.monotonic() - began >= 0.05


def test_without_orders_nobody_waits() -> None:
    precedence = Precedence(patience_s=60.0)
    began = time.monotonic()
    precedence.give_way()
    assert time.monotonic() - began < 5
