"""A repository's server that means no good: endless, slow, cut short, elsewhere. Each read ends, with a reason."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from covey_agent.errors import UsageError
from covey_agent.tuf.errors import Missing, Refused, RepositoryError, Unavailable
from covey_agent.tuf.source import FolderSource, HeldSource, HttpSource, Patience, read, source_at
from covey_contract.reasons import Reason

OK = b"HTTP/1.1 200 OK\r\n"


@contextlib.contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that reads a request and then does as it likes, with each connection, until it is closed."""
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()
    threads: list[threading.Thread] = []

    def handle(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while connection.recv(65536) and not ended.is_set():
                answer(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=handle, args=(connection,), daemon=True))
                threads[-1].start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join(5)


def fetch(url: str, limit: int = 1000, patience: Patience | None = None) -> bytes:
    with source_at(url, patience or Patience(), time.monotonic) as source:
        return read(source, "timestamp.json", limit)


def endless(connection: socket.socket) -> None:
    connection.sendall(OK + b"\r\n")
    while True:
        connection.sendall(b"x" * 4096)


def drip_body(connection: socket.socket) -> None:
    connection.sendall(OK + b"Content-Length: 900\r\n\r\n")
    while True:
        connection.sendall(b"x")
        threading.Event().wait(0.05)


def drip_headers(connection: socket.socket) -> None:
    connection.sendall(OK + b"X: ")
    while True:
        connection.sendall(b"y")
        threading.Event().wait(0.05)


def test_endless_data_is_cut_at_the_limit() -> None:
    with serving(endless) as url, pytest.raises(Refused) as caught:
        fetch(url)
    assert caught.value.reason is Reason.METADATA_TOO_LARGE


def test_an_announced_length_beyond_the_limit_is_not_even_begun() -> None:
    answer = OK + b"Content-Length: 1001\r\n\r\n"
    with serving(lambda connection: connection.sendall(answer)) as url, pytest.raises(Refused) as caught:
        fetch(url)
    assert caught.value.reason is Reason.METADATA_TOO_LARGE


def test_endless_chunks_are_cut_at_the_limit() -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"100\r\n" + b"x" * 256 + b"\r\n")

    with serving(answer) as url, pytest.raises(Refused) as caught:
        fetch(url)
    assert caught.value.reason is Reason.METADATA_TOO_LARGE


@pytest.mark.parametrize("drip", [drip_body, drip_headers])
def test_slow_retrieval_ends_at_the_deadline(drip: Callable[[socket.socket], None]) -> None:
    """Each byte comes well within the time that a read may take: only a limit on the whole ends it."""
    with serving(drip) as url, pytest.raises(Unavailable) as caught:
        fetch(url, patience=Patience(total_s=0.5, stall_s=10.0, grace_s=10.0))
    assert caught.value.reason is Reason.METADATA_UNAVAILABLE


def test_slow_retrieval_ends_for_too_little_throughput() -> None:
    with serving(drip_body) as url, pytest.raises(Unavailable, match="too slow"):
        fetch(url, patience=Patience(total_s=30.0, stall_s=10.0, grace_s=0.2, least_bytes_per_s=500.0))


def test_silence_ends() -> None:
    with serving(lambda _: None) as url, pytest.raises(Unavailable):
        fetch(url, patience=Patience(stall_s=0.2))


def test_the_deadline_is_for_all_requests_of_a_source_together() -> None:
    now = 0.0
    answer = OK + b"Content-Length: 1\r\n\r\nx"
    with serving(lambda connection: connection.sendall(answer)) as url:
        source = HttpSource(url, Patience(total_s=40.0), lambda: now)
        assert read(source, "a", 10) == b"x"
        now = 50.0
        with pytest.raises(Unavailable, match="in all"):
            read(source, "b", 10)
        source.close()


def test_a_body_that_is_cut_short_is_noticed() -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(OK + b"Content-Length: 100\r\n\r\nhalf")
        connection.shutdown(socket.SHUT_RDWR)

    with serving(answer) as url, pytest.raises(Unavailable):
        fetch(url)


@pytest.mark.parametrize("status", [301, 302, 307, 500, 503, 206, 204])
def test_redirects_and_errors_are_not_followed(status: int) -> None:
    answer = f"HTTP/1.1 {status} Odd\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n".encode()
    with serving(lambda connection: connection.sendall(answer)) as url, pytest.raises(Unavailable) as caught:
        fetch(url)
    assert not isinstance(caught.value, Missing)


@pytest.mark.parametrize("status", [403, 404])
def test_what_is_not_there_is_missing(status: int) -> None:
    answer = f"HTTP/1.1 {status} No\r\nContent-Length: 2\r\n\r\nno".encode()
    with serving(lambda connection: connection.sendall(answer)) as url, pytest.raises(Missing):
        fetch(url)


@pytest.mark.parametrize(
    "answer", [b"\x00\xff\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n"]
)
def test_what_is_not_http_is_an_error_and_no_crash(answer: bytes) -> None:
    def respond(connection: socket.socket) -> None:
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_RDWR)

    with serving(respond) as url, contextlib.suppress(RepositoryError):
        assert fetch(url) == b""


def test_a_kept_connection_that_was_closed_meanwhile_is_opened_again() -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(OK + b"Content-Length: 1\r\n\r\nx")
        connection.shutdown(socket.SHUT_RDWR)

    with serving(answer) as url, source_at(url, Patience(), time.monotonic) as source:
        assert [read(source, "a", 10), read(source, "b", 10)] == [b"x", b"x"]


@pytest.mark.parametrize("url", ["ftp://host/", "host", "http://", "http://h:x/", "", "http://h:0/"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(UsageError), source_at(url, Patience(), time.monotonic):
        pass


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unavailable):
        fetch(f"http://127.0.0.1:{port}")


def test_a_folder_gives_its_files_and_no_others(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (repository / "sub").mkdir(parents=True)
    (repository / "sub" / "file").write_bytes(b"bytes")
    (tmp_path / "secret").write_bytes(b"secret")
    with source_at(f"file://{repository}", Patience(), time.monotonic) as source:
        assert isinstance(source, FolderSource)
        assert read(source, "sub/file", 5) == b"bytes"
        with pytest.raises(Refused):
            read(source, "sub/file", 4)
        for name in ("../secret", "sub/../../secret", "sub", "", "/etc/passwd", "none", "sub/file/x"):
            with pytest.raises(Missing):
                read(source, name, 100)


def test_what_was_pushed_is_taken_first_and_bounded_too() -> None:
    source = HeldSource({"a": b"pushed"}, HeldSource({"a": b"other", "b": b"other"}))
    assert (read(source, "a", 10), read(source, "b", 10)) == (b"pushed", b"other")
    with pytest.raises(Missing):
        read(source, "c", 10)
    with pytest.raises(Refused):
        read(source, "a", 5)
