"""Waiting with a deadline, on a clock of the test's own; builds that wait for a builder; and the docstrings' examples."""

from __future__ import annotations

import doctest
from types import ModuleType
from typing import Any

import pytest

from covey_client import arguments, output
from covey_client.commands.models import BUILDER_S, Settled
from covey_client.errors import Unreachable
from covey_client.waiting import PATIENCE_S, TimedOut, wait


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_it_looks_until_it_is_done() -> None:
    clock, seen = Clock(), iter([1, 2, 3])
    found = wait(lambda: next(seen), lambda number: number == 3, timeout_s=60, clock=clock, sleep=clock.sleep)
    assert (found, clock.now) == (3, 101.0)


def test_it_gives_up_at_the_deadline_and_not_later() -> None:
    clock = Clock()
    with pytest.raises(TimedOut, match=r"not within 1.2 s"):
        wait(lambda: 0, bool, timeout_s=1.2, clock=clock, sleep=clock.sleep)
    assert clock.now == pytest.approx(101.2)


def test_a_server_that_restarts_is_waited_for() -> None:
    clock = Clock()

    def look() -> bool:
        if 101 < clock.now < 100 + PATIENCE_S:
            raise Unreachable
        return clock.now >= 140

    assert wait(look, bool, timeout_s=600, clock=clock, sleep=clock.sleep)


def test_a_server_that_stays_away_is_not() -> None:
    clock = Clock()

    def look() -> bool:
        raise Unreachable

    with pytest.raises(Unreachable):
        wait(look, bool, timeout_s=600, clock=clock, sleep=clock.sleep)
    assert clock.now == pytest.approx(100 + PATIENCE_S, abs=1)


def _version(state: str, waiting_for: str = "") -> dict[str, Any]:
    return {"builds": [{"target": "tensorrt-fp16-sm87", "state": state, "waiting_for": waiting_for}]}


def test_a_build_without_a_builder_is_settled_after_a_while() -> None:
    clock = Clock()
    settled = Settled([], clock)
    nobody = _version("queued", "waiting for a builder of that kind")
    assert not settled(nobody)
    clock.now += BUILDER_S - 1
    assert not settled(nobody)
    assert not settled(_version("building"))  # one came, and went again
    clock.now += 2
    assert not settled(nobody)
    clock.now += BUILDER_S
    assert settled(nobody)
    assert settled.missing(nobody) == []
    assert Settled(["tensorrt-fp16-sm87"], clock).missing(nobody) == nobody["builds"]


@pytest.mark.parametrize("module", [arguments, output], ids=lambda module: module.__name__)
def test_docstring_examples(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
