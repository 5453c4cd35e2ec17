"""HTTP over a real socket pair in one loop: any bytes are answered or the connection ends, and no memory stays accounted."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from covey_agent.gateway.http_messages import HttpRequest, HttpResponse
from covey_agent.gateway.http_protocol import Connections
from covey_agent.gateway.settings import Limits

Handler = Callable[[HttpRequest], Awaitable[HttpResponse]]
LIMITS = Limits(header_bytes=200, body_bytes=100, buffered_bytes=150, connections=2, read_s=0.0, idle_s=60.0)


async def echo(request: HttpRequest) -> HttpResponse:
    return HttpResponse(200, [bytes(request.body)])


def refuse(status: int, detail: str) -> HttpResponse:
    return HttpResponse(status, [detail.encode()])


def new_connections(handler: Handler = echo, limits: Limits = LIMITS) -> Connections:
    return Connections(handler, refuse, limits, lambda: asyncio.get_running_loop().time())


async def open_pair(connections: Connections) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    await asyncio.get_running_loop().create_unix_connection(connections.accept, sock=theirs)
    return await asyncio.open_unix_connection(sock=ours)


async def converse(pieces: list[bytes], connections: Connections) -> bytes:
    reader, writer = await open_pair(connections)
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return answer


REQUEST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
PIECES = st.lists(
    st.sampled_from(
        [
            REQUEST,
            REQUEST[:30],
            REQUEST[30:],
            b"GET /v2 HTTP/1.1\r\n\r\n",
            b"Transfer-Encoding: chunked\r\n\r\n",
            b"\r\n",
        ]
    )
    | st.binary(max_size=80),
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(PIECES)
def test_any_bytes_end_well(pieces: list[bytes]) -> None:
    connections = new_connections()
    answer = asyncio.run(converse(pieces, connections))
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
    assert connections.buffered == 0
    assert not connections.open


def test_answers_in_order_and_in_pieces() -> None:
    pieces = [REQUEST[:10], REQUEST[10:] + REQUEST.replace(b"abc", b"xyz")]
    answer = asyncio.run(converse(pieces, new_connections()))
    assert answer.count(b"200 OK") == 2
    assert answer.index(b"abc") < answer.index(b"xyz")


def test_limits() -> None:
    def status(request: bytes) -> bytes:
        return asyncio.run(converse([request], new_connections())).split(b"\r\n")[0]

    assert b"431" in status(b"GET / HTTP/1.1\r\nX: " + b"a" * 300 + b"\r\n\r\n")
    assert b"431" in status(b"GET / HTTP/1.1\r\nX: " + b"a" * 300)  # a header line without an end
    assert b"413" in status(b"POST / HTTP/1.1\r\nContent-Length: 101\r\n\r\n")
    chunk = b"41\r\n" + b"a" * 65 + b"\r\n"
    assert b"413" in status(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk + chunk)
    assert b"400" in status(b"GET / HTTP/9.9\r\n\r\n")
    continued = asyncio.run(
        converse([b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", b"a"], new_connections())
    )
    assert continued.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")


def test_bytes_of_all_connections_are_bounded() -> None:
    async def scenario() -> None:
        gate, arrived = asyncio.Event(), asyncio.Event()

        async def wait(request: HttpRequest) -> HttpResponse:
            arrived.set()
            await gate.wait()
            return await echo(request)

        connections = new_connections(wait)
        body = b"POST / HTTP/1.1\r\nContent-Length: 90\r\n\r\n" + b"a" * 90
        (first, first_writer), (second, second_writer) = [await open_pair(connections) for _ in range(2)]
        first_writer.write(body)
        await asyncio.wait_for(arrived.wait(), 10)
        assert connections.buffered == 90
        second_writer.write(body)
        assert b"503" in await asyncio.wait_for(second.readline(), 10)
        third, third_writer = await open_pair(connections)
        assert b"503" in await asyncio.wait_for(third.readline(), 10)  # more connections than two
        gate.set()
        assert b"200" in await asyncio.wait_for(first.readline(), 10)
        for writer in (first_writer, second_writer, third_writer):
            writer.close()
        await connections.drain(5)
        assert connections.buffered == 0

    asyncio.run(scenario())


def test_a_caller_that_dawdles_is_cut_off() -> None:
    async def scenario() -> None:
        connections = new_connections()
        reader, writer = await open_pair(connections)
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: 90\r\n\r\n")
        sweep = asyncio.create_task(connections.sweep())
        assert await asyncio.wait_for(reader.read(), 10) == b""
        sweep.cancel()
        writer.close()

    asyncio.run(scenario())


def test_the_gateway_imports_nothing_heavy() -> None:
    heavy = "{'numpy', 'psutil', 'cryptography', 'onnxruntime', 'paho', 'sqlite3'}"
    code = f"import sys, covey_agent.gateway.cli; print(*({heavy} & set(sys.modules)))"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert imported.stdout.split() == []
