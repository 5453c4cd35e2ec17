"""Broadcasts: each block once whatever the number of devices; what many miss once more, what few miss to each."""

from __future__ import annotations

import pytest

from covey_server.fleet import broadcasts, reconcile
from covey_server.fleet.broadcasts import BroadcastLimits, Broadcasts, places_of

LIMITS = BroadcastLimits(from_devices=3, from_blocks=4, gather_s=1.0, gather_most_s=5.0, repair_s=1.0)
BLOCKS = (1, 20)
ALL = [(0, 0), *places_of(1, range(20))]


def drain(streams: Broadcasts, now: float) -> list[tuple[int, int]]:
    """All that is sent now, until nothing is."""
    sent = []
    while (place := streams.next("b", now)) is not None:
        sent.append(place)
    return sent


@pytest.mark.parametrize("devices", [3, 500])
def test_each_block_is_sent_once_whatever_the_number_of_devices(devices: int) -> None:
    streams = Broadcasts(LIMITS)
    assert streams.ordered("b", devices, BLOCKS, 0.0)
    assert streams.next("b", 0.9) is None
    assert drain(streams, 1.0) == ALL
    assert [note.over for note in streams.notes(1.0)] == [True]
    assert streams.builds() == []


def test_few_devices_and_small_builds_are_not_broadcast() -> None:
    streams = Broadcasts(LIMITS)
    assert not streams.ordered("b", 2, BLOCKS, 0.0)
    assert not streams.ordered("b", 50, (1, 2), 0.0)
    assert not Broadcasts(BroadcastLimits(from_devices=0)).ordered("b", 1000, BLOCKS, 0.0)


def test_later_orders_put_off_the_start_but_not_for_ever() -> None:
    streams = Broadcasts(LIMITS)
    streams.ordered("b", 3, BLOCKS, 0.0)
    for now in (0.9, 1.8, 2.7, 3.6, 4.5, 4.9):
        assert streams.ordered("b", 1, BLOCKS, now)
        assert streams.next("b", now) is None
    assert streams.next("b", 5.0) == (0, 0)


def test_the_slowest_cap_holds() -> None:
    streams = Broadcasts(LIMITS)
    streams.ordered("b", 3, BLOCKS, 0.0)
    assert streams.rate("b") == LIMITS.bytes_per_s
    streams.ordered("b", 3, BLOCKS, 0.0, rate=5e5)
    streams.ordered("b", 3, BLOCKS, 0.0, rate=7e5)
    assert streams.rate("b") == 5e5


def test_what_is_still_to_come_is_not_sent_to_one_alone() -> None:
    streams = Broadcasts(LIMITS)
    streams.ordered("b", 3, BLOCKS, 0.0)
    assert streams.asked("d1", "b", BLOCKS, places_of(1, [5]), 0.1)
    drain(streams, 1.0)
    streams.notes(1.0)
    assert streams.settled(9.0) == []


def test_the_block_table_is_answered_at_once() -> None:
    streams = Broadcasts(LIMITS)
    streams.ordered("b", 3, BLOCKS, 0.0)
    assert not streams.asked("d1", "b", BLOCKS, places_of(0, [0]), 0.1)


def test_after_a_stream_what_many_miss_goes_to_all_and_the_rest_to_each() -> None:
    streams = Broadcasts(LIMITS)
    streams.ordered("b", 3, BLOCKS, 0.0)
    drain(streams, 1.0)
    streams.notes(1.0)
    for device in ("d1", "d2", "d3"):
        assert streams.asked(device, "b", BLOCKS, places_of(1, [7]), 1.5)
    assert streams.asked("d1", "b", BLOCKS, places_of(1, [9]), 1.6)
    assert streams.settled(2.0) == []
    assert streams.settled(2.6) == [("d1", "b", (1, 9))]
    assert drain(streams, 2.6) == [(1, 7)]


def test_after_repairs_that_nobody_shares_requests_are_answered_at_once() -> None:
    streams = Broadcasts(LIMITS)
    streams.ordered("b", 3, BLOCKS, 0.0)
    drain(streams, 1.0)
    streams.notes(1.0)
    assert streams.asked("d1", "b", BLOCKS, places_of(1, [9]), 1.5)
    assert streams.settled(2.6) == [("d1", "b", (1, 9))]
    assert not streams.asked("d1", "b", BLOCKS, places_of(1, [10]), 2.7)


def test_many_who_ask_for_the_same_rest_get_a_broadcast_of_it_without_an_order() -> None:
    """As after a restart of the server in the middle of a stream."""
    streams = Broadcasts(LIMITS)
    want = places_of(1, range(2, 18))
    kept = [streams.asked(f"d{number}", "b", BLOCKS, want, 0.1 * number) for number in range(7)]
    assert kept == [False, False, True, True, True, True, True]
    assert streams.settled(5.0) == []
    assert drain(streams, 5.0) == places_of(1, range(2, 20))


def test_a_block_that_could_not_be_sent_comes_again() -> None:
    streams = Broadcasts(LIMITS)
    streams.ordered("b", 3, BLOCKS, 0.0)
    assert streams.next("b", 1.0) == (0, 0)
    streams.back("b")
    assert drain(streams, 1.0) == ALL


def test_what_is_said_while_it_lasts() -> None:
    streams = Broadcasts(LIMITS)
    streams.ordered("b", 4, BLOCKS, 0.0)
    assert [(note.blocks, note.listeners, note.over) for note in streams.notes(0.0)] == [(21, 4, False)]
    assert streams.notes(0.5) == []
    assert [note.blocks for note in streams.notes(1.0)] == [21]


def test_what_is_remembered_of_requests_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcasts, "_STREAMS", 4)
    streams = Broadcasts(LIMITS)
    for number in range(50):
        streams.asked("d1", f"b{number}", BLOCKS, places_of(1, [1]), 0.0)
    assert len(streams._sought) <= 4


@pytest.mark.parametrize(
    ("spec", "stage", "rate"),
    [
        ({}, 0, None),
        ({"pace": {"bandwidth": "5MB/s"}}, 0, 5e6),
        ({"pace": {"bandwidth": "5MB/s"}, "stages": [{"pace": {"bandwidth": "200kB/s"}}, {}]}, 0, 2e5),
        ({"pace": {"bandwidth": "5MB/s"}, "stages": [{"pace": {"bandwidth": "200kB/s"}}, {}]}, 1, 5e6),
        ({"pace": {"per_minute": 5}}, 3, None),
    ],
)
def test_the_campaigns_cap(spec: dict[str, object], stage: int, rate: float | None) -> None:
    assert reconcile.bandwidth_of(spec, stage) == rate
