"""Requests whose heads are known: answered as if they were not, whatever comes before them and however they are cut; and the quick way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from covey_agent.gateway.buffers import RECEIVE_BYTES, Buffers
from covey_agent.gateway.http_messages import HttpRequest, HttpResponse
from covey_agent.gateway.http_protocol import Answered, Connections
from covey_agent.gateway.known_heads import MAX_HEADS, KnownHead, KnownHeads
from covey_agent.gateway.settings import Limits
from tests.unit.agent_gateway.test_gateway_http import converse, new_connections, open_pair

LIMITS = Limits(body_bytes=4 * RECEIVE_BYTES, buffered_bytes=8 * RECEIVE_BYTES)


async def repeat(request: HttpRequest) -> HttpResponse:
    """All that was understood of the request."""
    return HttpResponse(
        200, [repr((request.method, request.url, sorted(request.headers.items()), bytes(request.body))).encode()]
    )


def post(body: bytes, path: bytes = b"/", more: bytes = b"") -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: a\r\n%sContent-Length: %d\r\n\r\n%s" % (path, more, len(body), body)


REQUESTS = [
    post(b"abc"),
    post(b"xyz"),
    post(b"abc", b"/other"),
    post(b"\r\n\r\n"),
    post(post(b"abc")),  # a body that looks like a request
    post(b"abc", more=b"X: 1\r\n"),
    post(b""),
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\r\n" + post(b"abc"),
]


def cut(stream: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(stream[:size])
        stream = stream[size:]
    return [piece for piece in (*pieces, stream) if piece]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=6), st.lists(st.integers(1, 120), max_size=12))
def test_known_or_not_the_answers_are_the_same(requests: list[bytes], sizes: list[int]) -> None:
    warm = new_connections(repeat, LIMITS)
    for request in REQUESTS:
        asyncio.run(converse([request], warm))
    known = dict(warm.shared.heads._heads)
    assert len(known) == 7  # not the chunked one, nor the one without a body's length
    stream = b"".join(requests)
    assert asyncio.run(converse(cut(stream, sizes), warm)) == asyncio.run(
        converse([stream], new_connections(repeat, LIMITS))
    )
    assert warm.buffered == 0


def test_a_large_body_in_many_pieces() -> None:
    connections = new_connections(repeat, LIMITS)
    body = bytes(range(256)) * (RECEIVE_BYTES // 128)
    first, second = (asyncio.run(converse([post(body)], connections)) for _ in range(2))
    assert first == second
    assert len(first) > len(body)


def test_heads_are_bounded() -> None:
    heads = KnownHeads()
    for number in range(3 * MAX_HEADS):
        heads.learn(KnownHead(b"%d\r\n\r\n" % number, b"/", {}, 0))
        assert len(heads._heads) <= MAX_HEADS
    assert heads.find(bytearray(b"x" * 5000 + b"\r\n\r\n"), 5004) == (b"", None)


def test_a_buffer_that_is_lent_is_read_into_by_nobody_else() -> None:
    buffers = Buffers()
    taken = [buffers.take() for _ in range(10)]
    assert len({id(buffer) for buffer in (*taken, buffers.current)}) == 11
    for buffer in taken:
        buffers.give_back(buffer)
    assert len(buffers._spare) < 10
    assert len(buffers.take_part(3, 100)) == 100
    assert len(buffers.take_part(3, 2 * RECEIVE_BYTES)) == 2 * RECEIVE_BYTES


# --- the quick way ----------------------------------------------------------------------------------------------------


class Later:
    """Takes every request, and answers when it is told to."""

    def __init__(self) -> None:
        self.taken: list[tuple[memoryview, Answered]] = []
        self.connections = Connections(
            repeat, lambda status, detail: HttpResponse(status, [detail.encode()]), LIMITS, self.clock, self.quick
        )

    def clock(self) -> float:
        return asyncio.get_running_loop().time()

    def quick(self, _head: KnownHead, body: memoryview, answered: Answered) -> bool:
        self.taken.append((body, answered))
        return True

    def answer(self) -> None:
        body, answered = self.taken.pop(0)
        answered(HttpResponse(200, [b"quick ", bytes(body)]).encode(keep_alive=True))

    async def wait(self, count: int = 1) -> None:
        await come_true(lambda: len(self.taken) >= count, "the request has not come")


async def come_true(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, otherwise
        await asyncio.sleep(0.001)


async def settle() -> None:
    """What is written to a pair of sockets lies there at once: after some rounds of the loop everybody has read it, and acted upon it."""
    for _ in range(20):
        await asyncio.sleep(0)


def play(scenario: Callable[[Later], object]) -> None:
    async def run() -> None:
        later = Later()
        await converse([post(b"abc")], later.connections)  # the head becomes a known one
        await scenario(later)  # type: ignore[misc]
        assert later.connections.buffered == 0

    asyncio.run(asyncio.wait_for(run(), 20))


def test_what_comes_behind_a_quick_request_is_answered_behind_it() -> None:
    async def scenario(later: Later) -> None:
        reader, writer = await open_pair(later.connections)
        writer.write(post(b"one"))
        await later.wait()
        writer.write(post(b"two") + b"GET /three HTTP/1.1\r\nHost: a\r\n\r\n")
        await settle()
        later.answer()
        writer.write_eof()
        answer = await reader.read()
        assert answer.count(b"200 OK") == 3
        assert answer.index(b"quick one") < answer.index(b"two") < answer.index(b"/three")
        writer.close()

    play(scenario)


def test_a_caller_that_has_said_all_still_gets_its_answer() -> None:
    async def scenario(later: Later) -> None:
        reader, writer = await open_pair(later.connections)
        writer.write(post(b"one"))
        writer.write_eof()
        await later.wait()
        await settle()
        later.answer()
        assert (await reader.read()).endswith(b"quick one")
        writer.close()

    play(scenario)


def test_a_caller_that_goes_away_costs_nothing() -> None:
    async def scenario(later: Later) -> None:
        _, writer = await open_pair(later.connections)
        writer.write(post(b"one"))
        await later.wait()
        writer.transport.abort()
        await settle()
        later.answer()
        await come_true(lambda: not later.connections.open, "its connection is open")

    play(scenario)


def test_at_the_end_what_was_taken_is_still_answered() -> None:
    async def scenario(later: Later) -> None:
        reader, writer = await open_pair(later.connections)
        writer.write(post(b"one"))
        await later.wait()
        draining = asyncio.create_task(later.connections.drain(10))
        await settle()
        assert not draining.done()
        later.answer()
        await draining
        assert (await reader.read()).endswith(b"quick one")
        writer.close()

    play(scenario)


def test_a_caller_that_does_not_take_its_answer_is_read_no_further() -> None:
    async def scenario(later: Later) -> None:
        reader, writer = await open_pair(later.connections)
        writer.write(post(b"one"))
        await later.wait()
        body, answered = later.taken.pop()
        large = HttpResponse(200, [bytes(4 << 20)]).encode(keep_alive=True)
        answered(large)
        writer.write(post(b"two"))
        await settle()
        assert later.taken == []
        assert len(await reader.readexactly(len(large))) == len(large)
        writer.write_eof()
        await settle()
        if later.taken:
            later.answer()
        assert (await reader.read()).count(b"two") == 1
        writer.close()

    play(scenario)


def test_bytes_of_known_requests_are_bounded_too() -> None:
    async def scenario(later: Later) -> None:
        pairs = [await open_pair(later.connections) for _ in range(2)]
        body = bytes(4 * RECEIVE_BYTES)
        await converse([post(body)], later.connections)
        (first, first_writer), (second, second_writer) = pairs
        first_writer.write(post(body))
        await later.wait()
        second_writer.write(post(body))
        await later.wait(2)
        third, third_writer = await open_pair(later.connections)
        third_writer.write(post(b"abc"))
        assert b"503" in await third.readline()
        later.answer()
        later.answer()
        for reader, writer in ((first, first_writer), (second, second_writer), (third, third_writer)):
            writer.write_eof()
            await reader.read()
            writer.close()
        await settle()

    play(scenario)
