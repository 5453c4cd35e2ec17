"""What requests are read into: no more is kept than the requests of late have needed."""

from __future__ import annotations

from covey_agent.gateway.buffers import LARGE_BYTES, RECEIVE_BYTES, Buffers

LARGE = 10 * RECEIVE_BYTES


def test_a_part_that_came_is_taken_along() -> None:
    buffers = Buffers()
    buffers.current[:5] = b"begin"
    assert buffers.take_part(5, LARGE)[:5] == b"begin"
    buffers.current[:5] = b"other"
    assert buffers.take_part(5, RECEIVE_BYTES)[:5] == b"other"


def test_the_buffer_of_a_large_request_serves_the_next_ones_like_it() -> None:
    buffers = Buffers()
    first = buffers.take_part(0, LARGE)
    assert buffers.take_part(0, LARGE) is not first  # two at the same time
    buffers.give_back(first)
    buffers.give_back(bytearray(LARGE))  # one is enough
    assert buffers.take_part(0, LARGE - 1) is first
    assert buffers.take_part(0, LARGE) is not first


def test_neither_a_much_smaller_nor_a_larger_request_takes_it() -> None:
    buffers = Buffers()
    first = buffers.take_part(0, 8 * LARGE)
    buffers.give_back(first)
    assert len(buffers.take_part(0, LARGE)) == LARGE
    buffers.give_back(first)
    assert len(buffers.take_part(0, 9 * LARGE)) == 9 * LARGE


def test_it_is_let_go_when_no_large_request_has_come_for_a_while() -> None:
    buffers = Buffers()
    for rests, kept in ((4, True), (4, True), (5, False)):
        buffer = buffers.take_part(0, LARGE)
        buffers.give_back(buffer)
        for _ in range(rests):
            buffers.rest()
        assert (buffers.take_part(0, LARGE) is buffer) is kept


def test_what_is_very_large_is_not_kept() -> None:
    buffers = Buffers()
    first = buffers.take_part(0, LARGE_BYTES + 1)
    buffers.give_back(first)
    assert buffers.take_part(0, LARGE_BYTES + 1) is not first
