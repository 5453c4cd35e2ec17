"""Memory that gateway and runner share: what is laid is what is seen, and the gateway's mapping cannot be cut short."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from covey_agent.runner.arena import KEPT_BYTES, Arena

ENDS = tuple[Arena, Arena]


@pytest.fixture
def ends() -> Iterator[ENDS]:
    ours = Arena.made()
    assert ours is not None
    theirs = Arena(os.dup(ours.descriptor))
    yield ours, theirs
    theirs.close()
    ours.close()


def test_what_is_laid_is_seen_in_order(ends: ENDS) -> None:
    ours, theirs = ends
    ours.lay([b"abc", memoryview(b"defg")])
    assert bytes(theirs.view(7)) == b"abcdefg"


def test_it_grows_and_an_older_view_stays_valid(ends: ENDS) -> None:
    ours, theirs = ends
    ours.lay([b"a" * 10])
    before = theirs.view(10)
    ours.lay([b"b" * 100_000])
    assert bytes(theirs.view(100_000)) == b"b" * 100_000
    assert bytes(before) == b"b" * 10  # the same memory


def test_what_was_read_to_the_room_is_seen_without_being_copied(ends: ENDS) -> None:
    ours, theirs = ends
    room = ours.room(7)
    first, second = room[:3], room[3:]
    first[:], second[:] = b"abc", b"defg"
    ours.lay([first, second])
    assert bytes(theirs.view(7)) == b"abcdefg"
    room[:] = b"ABCDEFG"  # the same memory
    assert bytes(theirs.view(7)) == b"ABCDEFG"


def test_what_lies_in_another_one_or_in_what_it_was_before_is_copied(ends: ENDS) -> None:
    ours, theirs = ends
    room = ours.room(4)
    room[:] = b"here"
    other = Arena.made()
    assert other is not None
    try:
        other.lay([room])
        assert bytes(other.view(4)) == b"here"
    finally:
        other.close()
    ours.room(100_000)  # it grows, and is mapped elsewhere
    ours.lay([room, b"!"])
    assert bytes(theirs.view(5)) == b"here!"


def test_the_other_end_cannot_cut_it_short(ends: ENDS) -> None:
    ours, theirs = ends
    ours.lay([b"a" * 5000])
    with pytest.raises(PermissionError):
        os.ftruncate(theirs.descriptor, 0)


def test_more_than_was_laid_is_refused(ends: ENDS) -> None:
    ours, theirs = ends
    with pytest.raises(ValueError, match="announced"):
        theirs.view(1)
    ours.lay([b"a"])
    with pytest.raises(ValueError, match="announced"):
        theirs.view(1 << 20)


def held(arena: Arena) -> int:
    """Bytes that it has memory for."""
    return os.fstat(arena.descriptor).st_blocks * 512


def test_what_large_requests_took_is_kept_while_they_come_and_given_back_afterwards(ends: ENDS) -> None:
    ours, theirs = ends
    large = 4 * KEPT_BYTES
    ours.lay([b"a" * large])
    ours.trim()
    assert held(ours) >= large  # there was one since the last time
    ours.lay([b"b" * 10])
    ours.trim()
    assert held(ours) == KEPT_BYTES
    assert not ours.is_large
    ours.lay([b"c" * large])  # the other end sees what comes next all the same
    assert bytes(theirs.view(large)) == b"c" * large


def test_a_larger_request_among_large_ones_gives_back_its_part(ends: ENDS) -> None:
    ours, _ = ends
    ours.lay([bytes(4 * KEPT_BYTES)])
    ours.trim()
    ours.lay([bytes(2 * KEPT_BYTES)])
    ours.trim()
    assert held(ours) == 2 * KEPT_BYTES
    assert ours.is_large


def test_what_is_kept_for_good(ends: ENDS) -> None:
    ours, _ = ends
    ours.lay([bytes(KEPT_BYTES)])
    assert not ours.is_large
    for _ in range(3):
        ours.trim()
    assert held(ours) == KEPT_BYTES


def test_closing_twice_is_harmless() -> None:
    arena = Arena.made()
    assert arena is not None
    arena.close()
    arena.close()
