"""Blocks by HTTPS: the ranges of a build's files from the server, object storage or a CDN, handed on as if the broker had brought them.

Invariants: nothing that arrives is believed here, the fetcher judges each block by its digest; no more is read than was asked for; every
read ends (stall, least throughput). A place that does not give what it should is left alone for a while, and its blocks
are asked for by MQTT: the bitmap on disk is the same for both.
"""

from __future__ import annotations

import http.client
import logging
import queue
import re
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

from covey_contract.blocks import Block, blocks_of
from covey_contract.manifest import FileEntry
from covey_contract.messages import BlockRequest, Offer

log = logging.getLogger(__name__)

CONNECTIONS = 2
_QUEUE = 8
_STALL_S = 20.0
_GRACE_S = 10.0  # after which an answer must have come at `_LEAST_BYTES_PER_S` on average
_LEAST_BYTES_PER_S = 500.0
_LEFT_ALONE_S = 60.0
_FULL_INBOX_S = 0.05
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class WebError(Exception):
    """The place does not give what was asked for."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Neighbouring blocks of one file."""

    build: str
    file: int
    entry: FileEntry
    block_size: int
    first: int
    count: int
    address: SplitResult
    token: str

    @property
    def start(self) -> int:
        return self.first * self.block_size

    @property
    def length(self) -> int:
        return min(self.count * self.block_size, self.entry.size - self.start)

    def keys(self) -> list[tuple[str, int, int]]:
        return [(self.build, self.file, self.first + step) for step in range(self.count)]


class WebBlocks:
    """`take` is given each block, in a thread of its own, and says whether there was room for it. `server`: the device's own, to
    which alone tokens are sent; `context` for it, others are known by the system's authorities."""

    def __init__(
        self,
        server: str,
        context: Callable[[], ssl.SSLContext],
        take: Callable[[Block], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._context = context
        self._take = take
        self._clock = clock
        self._queue: queue.Queue[_Run | None] = queue.Queue(_QUEUE)
        self._lock = threading.Lock()
        self._busy: set[tuple[str, int, int]] = set()
        self._not_before: dict[str, float] = {}
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        for number in range(CONNECTIONS):
            thread = threading.Thread(target=self._work, name=f"covey-web-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Ends what is under way; what has come is kept by the fetcher."""
        self._stopping.set()
        for _ in self._threads:
            try:
                self._queue.put_nowait(None)
            except queue.Full:
                break  # they see `_stopping` between two runs
        for thread in self._threads:
            thread.join(_STALL_S + 1.0)

    def ask(self, request: BlockRequest, entry: FileEntry, block_size: int, offer: Offer) -> bool:
        """Get these blocks of a file; False if that must be done another way."""
        if not offer.url or not self._threads:
            return False
        address = urlsplit(urljoin(self._server, offer.url.replace("{sha256}", entry.sha256)))
        if address.scheme not in ("http", "https") or not address.hostname:
            return False
        ours = urlsplit(self._server)
        token = offer.token if (address.scheme, address.netloc) == (ours.scheme, ours.netloc) else ""
        with self._lock:
            if self._clock() < self._not_before.get(address.netloc, 0.0):
                return False
            places = [
                index
                for index in blocks_of(request.base, request.bitmap)
                if (request.build, request.file, index) not in self._busy
            ]
            for first, count in runs_of(places):
                run = _Run(request.build, request.file, entry, block_size, first, count, address, token)
                try:
                    self._queue.put_nowait(run)
                except queue.Full:
                    break  # they are asked for again
                self._busy.update(run.keys())
        return True

    def _work(self) -> None:
        connections: dict[str, http.client.HTTPConnection] = {}
        try:
            while (run := self._queue.get()) is not None and not self._stopping.is_set():
                try:
                    self._fetch(run, connections)
                except (OSError, http.client.HTTPException, WebError, ValueError) as error:
                    self._leave_alone(run.address.netloc, connections, error)
                finally:
                    with self._lock:
                        self._busy.difference_update(run.keys())
        finally:
            for connection in connections.values():
                connection.close()

    def _leave_alone(self, place: str, connections: dict[str, http.client.HTTPConnection], error: Exception) -> None:
        log.warning(
            "%s is left alone for %.0f s: %s", place, _LEFT_ALONE_S, " ".join(str(error).split()) or type(error)
        )
        if (broken := connections.pop(place, None)) is not None:
            broken.close()
        with self._lock:
            self._not_before[place] = self._clock() + _LEFT_ALONE_S

    def _fetch(self, run: _Run, connections: dict[str, http.client.HTTPConnection]) -> None:
        connection = connections.get(run.address.netloc)
        if connection is None:
            connection = connections[run.address.netloc] = self._connect(run.address)
        answer = self._request(connection, run)
        began, index, left = self._clock(), run.first, run.length
        while left:
            data = self._read(answer, min(run.block_size, left), run.length - left, began)
            left -= len(data)
            block = Block(bytes.fromhex(run.build[:16]), run.file, index, data)
            while not self._take(block):
                if self._stopping.wait(_FULL_INBOX_S):
                    raise WebError("the agent ends")
            index += 1
        answer.read(1)  # the end, so that the connection can be used again

    def _connect(self, address: SplitResult) -> http.client.HTTPConnection:
        host, port = address.hostname or "", address.port
        if address.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=_STALL_S)
        own = address.netloc == urlsplit(self._server).netloc
        context = self._context() if own else ssl.create_default_context()
        return http.client.HTTPSConnection(host, port, timeout=_STALL_S, context=context)

    def _request(self, connection: http.client.HTTPConnection, run: _Run) -> http.client.HTTPResponse:
        headers = {"Range": f"bytes={run.start}-{run.start + run.length - 1}", "Accept-Encoding": "identity"}
        if run.token:
            headers["Authorization"] = f"Bearer {run.token}"
        path = run.address.path + (f"?{run.address.query}" if run.address.query else "")
        kept = connection.sock is not None  # the server may have closed it meanwhile
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            if not kept:
                raise
            connection.close()
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
        if answer.status == 200 and answer.length == run.entry.size == run.length:
            return answer  # a place that knows no ranges gives a file that was asked for whole
        match = _RANGE.fullmatch(answer.getheader("Content-Range", ""))
        whole = (str(run.start), str(run.start + run.length - 1), str(run.entry.size))
        if answer.status != 206 or match is None or match.groups() != whole or answer.length != run.length:
            connection.close()
            raise WebError(f"answer {answer.status} to a range of {run.length} bytes")
        return answer

    def _read(self, answer: http.client.HTTPResponse, size: int, before: int, began: float) -> bytes:
        pieces, got = [], 0
        while got < size:
            piece = answer.read1(size - got)
            if not piece:
                raise WebError("the answer ends too early")
            pieces.append(piece)
            got += len(piece)
            passed = self._clock() - began
            if passed > _GRACE_S and (before + got) / passed < _LEAST_BYTES_PER_S:
                raise WebError(f"it comes at {(before + got) / passed:.0f} bytes a second; that is too slow")
            if self._stopping.is_set():
                raise WebError("the agent ends")
        return b"".join(pieces)


def runs_of(indices: Sequence[int]) -> list[tuple[int, int]]:
    """(first, count) of what lies side by side.

    >>> runs_of([3, 4, 5, 9])
    [(3, 3), (9, 1)]
    """
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and runs[-1][0] + runs[-1][1] == index:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((index, 1))
    return runs
