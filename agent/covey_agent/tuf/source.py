"""Where the repository's files come from. A source is asked for a name and a limit; what it gives is believed by nobody.

HTTP(S), a folder, and bytes that somebody pushed (MQTT) are alike here. Every read ends: by the limit, by the deadline, or because
too little comes (endless data, slow retrieval).
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

from covey_agent.bundle import SCHEME as BUNDLE_SCHEME
from covey_agent.bundle import Bundle, BundleError
from covey_agent.errors import UsageError
from covey_agent.tuf.errors import Missing, Refused, Unavailable
from covey_contract.bundle import metadata_name
from covey_contract.reasons import Reason

_PIECE = 64 * 1024


class Source(Protocol):
    """One place to get files from. `name` is relative to it and quoted as in a URL."""

    def pieces(self, name: str, limit: int) -> Iterator[bytes]:
        """The file's bytes. Raises `Missing`, `Unavailable`, or `Refused` as soon as it has more than `limit` bytes."""
        ...


def read(source: Source, name: str, limit: int) -> bytes:
    """The whole file; raises as `Source.pieces` does."""
    return b"".join(source.pieces(name, limit))


@dataclass(frozen=True, slots=True)
class Patience:
    """How long is waited. Seconds; bytes a second."""

    total_s: float = 120.0  # for everything that one source is asked for
    stall_s: float = 20.0  # without a single byte
    grace_s: float = 10.0  # after which a file must have come at `least_bytes_per_s` on average
    least_bytes_per_s: float = 500.0


class HttpSource:
    """A web server. `clock` is monotonic; the total deadline runs from the first request. Redirects are not followed: whoever may
    answer in the repository's place is named by its address."""

    def __init__(
        self,
        base: str,
        patience: Patience,
        clock: Callable[[], float],
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._address = _address(base)
        self._patience = patience
        self._clock = clock
        self._context = context
        self._until: float | None = None
        self._connection: http.client.HTTPConnection | None = None

    def pieces(self, name: str, limit: int) -> Iterator[bytes]:
        left, began = self._check_deadline(name), self._clock()
        connection = self._connect(left)
        # A server that drips header lines is answered by nobody else: at the deadline its socket is shut.
        guard = threading.Timer(left, _shut, [connection])
        guard.daemon = True
        guard.start()
        answer: http.client.HTTPResponse | None = None
        whole = False  # the answer was read to its end, and the connection can be used again
        try:
            answer = self._ask(connection, name)
            if answer.status in (403, 404):  # object storage answers 403 for what is not there
                whole = len(answer.read(_PIECE)) < _PIECE
                raise Missing(f"the repository has no {name}")
            yield from self._body(answer, name, limit, began)
            whole = True
        except (OSError, http.client.HTTPException) as error:
            words = " ".join(str(error).split()) or type(error).__name__
            raise Unavailable(f"{self._address.netloc} does not give {name}: {words}") from error
        finally:
            guard.cancel()
            if answer is not None:
                answer.close()
            if not whole:
                self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self, left: float) -> http.client.HTTPConnection:
        timeout = min(self._patience.stall_s, left)
        if self._connection is None:
            host, port = self._address.hostname or "", self._address.port
            if self._address.scheme == "https":
                context = self._context or ssl.create_default_context()
                self._connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
            else:
                self._connection = http.client.HTTPConnection(host, port, timeout=timeout)
        self._connection.timeout = timeout
        if self._connection.sock is not None:
            self._connection.sock.settimeout(timeout)
        return self._connection

    def _ask(self, connection: http.client.HTTPConnection, name: str) -> http.client.HTTPResponse:
        path = f"{self._address.path.rstrip('/')}/{name}"
        again = connection.sock is not None  # kept from the request before: the server may have closed it meanwhile
        try:
            connection.request("GET", path, headers={"Accept-Encoding": "identity"})
            answer = connection.getresponse()
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            if not again:
                raise
            connection.close()
            connection.request("GET", path, headers={"Accept-Encoding": "identity"})
            answer = connection.getresponse()
        if answer.status not in (200, 403, 404):
            answer.close()
            raise Unavailable(f"{self._address.netloc} answers {answer.status} for {name}")
        return answer

    def _body(self, answer: http.client.HTTPResponse, name: str, limit: int, began: float) -> Iterator[bytes]:
        if answer.length is not None and answer.length > limit:
            raise _too_large(name, limit)
        total = 0
        while piece := answer.read1(_PIECE):
            total += len(piece)
            if total > limit:
                raise _too_large(name, limit)
            self._check_pace(name, total, began)
            yield piece
        if answer.length:
            raise Unavailable(f"{name} ends {answer.length} bytes too early")
        self._check_deadline(name)  # what the guard cut off may look like an end

    def _check_pace(self, name: str, total: int, began: float) -> None:
        self._check_deadline(name)
        passed, patience = self._clock() - began, self._patience
        if passed > patience.grace_s and total / passed < patience.least_bytes_per_s:
            raise Unavailable(f"{name} comes at {total / passed:.0f} bytes a second; that is too slow")

    def _check_deadline(self, name: str) -> float:
        """The seconds that are left, from the first request on. Raises `Unavailable` if there are none."""
        now = self._clock()
        if self._until is None:
            self._until = now + self._patience.total_s
        if now >= self._until:
            raise Unavailable(f"{name}: the repository took longer than {self._patience.total_s:.0f} s in all")
        return self._until - now


class FolderSource:
    """A folder, such as a stick that somebody carried over. Files lie under their quoted names."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def pieces(self, name: str, limit: int) -> Iterator[bytes]:
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise Missing(f"{name!r} is no name of a file in a repository")
        try:
            with (self._folder / name).open("rb") as file:
                total = 0
                while piece := file.read(_PIECE):
                    total += len(piece)
                    if total > limit:
                        raise _too_large(name, limit)
                    yield piece
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise Missing(f"{self._folder} has no {name}") from error
        except OSError as error:
            raise Unavailable(f"{self._folder / name} cannot be read: {error.strerror}") from error


class BundleSource:
    """The metadata in a bundle (`covey_contract.bundle`)."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def pieces(self, name: str, limit: int) -> Iterator[bytes]:
        member = metadata_name(name)
        size = self._bundle.size(member)
        if size is None:
            raise Missing(f"{self._bundle.path} has no {name}")
        if size > limit:
            raise _too_large(name, limit)
        try:
            yield self._bundle.read(member, 0, size)
        except BundleError as error:
            raise Unavailable(str(error)) from error


class HeldSource:
    """Files that are here already: what the server pushed over MQTT, say. What is not among them is asked of `otherwise`."""

    def __init__(self, files: Mapping[str, bytes], otherwise: Source | None = None) -> None:
        self._files = files
        self._otherwise = otherwise

    def pieces(self, name: str, limit: int) -> Iterator[bytes]:
        data = self._files.get(name)
        if data is None:
            if self._otherwise is None:
                raise Missing(f"{name} was not sent")
            yield from self._otherwise.pieces(name, limit)
            return
        if len(data) > limit:
            raise _too_large(name, limit)
        yield data


@contextlib.contextmanager
def source_at(
    url: str, patience: Patience, clock: Callable[[], float], context: ssl.SSLContext | None = None
) -> Iterator[Source]:
    """By the address's scheme: http, https, file or bundle. Raises `UsageError`."""
    if url.startswith("file://"):
        yield FolderSource(Path(urlsplit(url).path))
        return
    if url.startswith(BUNDLE_SCHEME):
        try:
            bundle = Bundle(Path(url.removeprefix(BUNDLE_SCHEME)))
        except BundleError as error:
            raise Unavailable(str(error)) from error
        with bundle:
            yield BundleSource(bundle)
        return
    source = HttpSource(url, patience, clock, context)
    try:
        yield source
    finally:
        source.close()


def _address(url: str) -> SplitResult:
    address = urlsplit(url)
    try:
        port = address.port
    except ValueError as error:
        raise UsageError(f"{url!r}: {error}") from error
    if address.scheme not in ("http", "https") or not address.hostname or port == 0:
        raise UsageError(f"{url!r} is not an address: http://, https:// or file://")
    return address


def _too_large(name: str, limit: int) -> Refused:
    return Refused(Reason.METADATA_TOO_LARGE, f"{name} has more than the {limit} bytes that it may have")


def _shut(connection: http.client.HTTPConnection) -> None:
    with contextlib.suppress(OSError):
        if connection.sock is not None:
            connection.sock.shutdown(2)
