"""The client's end of the wire, against a server that says what it is told to: in pieces, otherwise than expected, late, or never."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from covey_agent.client import Client, ClientError
from covey_agent.client_wire import Answer, Connection, Expected, NobodyAnswers

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
LARGE = bytes(range(256)) * 1024


@contextmanager
def server(*connections: list[list[bytes]]) -> Iterator[tuple[str, int]]:
    """One connection after the other; in each, the pieces of one answer for each request, whatever it says."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            for answers in connections:
                caller, _ = listening.accept()
                with caller:
                    caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    for pieces in answers:
                        if not caller.recv(65536):
                            break
                        for piece in pieces:
                            caller.sendall(piece)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()
        thread.join(10)
        assert not thread.is_alive()


def body(answer: Answer | bytearray) -> bytes:
    return bytes(answer.body if isinstance(answer, Answer) else answer)


def test_an_answer_in_any_pieces_is_the_same() -> None:
    whole = HEAD % 5 + b"hello"
    cuts = [[whole], [whole[:10], whole[10:]], [whole[:-2], whole[-2:]], [bytes([byte]) for byte in whole]]
    with server(cuts) as address:
        connection = Connection(address, 5)
        for _ in cuts:
            assert body(connection.ask([b"x"])) == b"hello"
        connection.close()


@pytest.mark.parametrize("tensors", [b"", b"abcd", LARGE])
def test_what_is_expected_is_not_read_again_and_what_is_not_is(tensors: bytes) -> None:
    start = HEAD % (3 + len(tensors)) + b"{1}"
    other = HEAD % (3 + len(tensors)) + b"{2}" + tensors
    refused = b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno"
    answers = [[start + tensors], [start, tensors] if tensors else [start], [other], [refused]]
    with server(answers) as address:
        connection = Connection(address, 5)
        expected = Expected(start, len(tensors))
        got = [connection.ask([b"x"], expected) for _ in answers]
        connection.close()
    assert [isinstance(answer, bytearray) for answer in got] == [True, True, False, False]
    assert [body(answer) for answer in got] == [tensors, tensors, b"{2}" + tensors, b"no"]
    assert isinstance(got[3], Answer)
    assert got[3].status == 503


def test_a_connection_that_was_closed_meanwhile_is_opened_again_once() -> None:
    answer = [HEAD % 2 + b"ok"]
    with server([answer], [answer], []) as address:
        connection = Connection(address, 5)
        assert body(connection.ask([b"x"])) == b"ok"
        assert body(connection.ask([b"x"])) == b"ok"
        connection.close()
        with pytest.raises(OSError, match=r"ended|reset"):  # as the kernel tells it
            connection.ask([b"x"])


def test_one_that_never_answers_is_waited_for_so_long_and_no_longer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = Client(f"127.0.0.1:{listening.getsockname()[1]}", timeout_s=0.2)
        with pytest.raises(ClientError, match="no answer within 0.2 s"):
            client.metadata("m")
        client.close()
    with pytest.raises(NobodyAnswers):
        Connection(("127.0.0.1", 1), 1).ask([b"x"])


@pytest.mark.parametrize(
    "answer", [b"x" * 70_000, b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", HEAD % 9 + b"short"]
)
def test_an_answer_that_is_none(answer: bytes) -> None:
    with server([[answer]]) as address:
        connection = Connection(address, 5)
        with pytest.raises(OSError, match=r"too long|bytes|ended"):
            connection.ask([b"x"])
        connection.close()
