"""One POST request to a checked destination, with a deadline for all of it and a limit for the answer.

Written on http.client and not on a larger client, since the socket has to be ours: it is connected to the address that was
judged, goes through no proxy, and is shut by a timer when the time is up, however slowly the other side drips.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from covey_server.notifications.destination import Target

MAX_ANSWER_BYTES = 64 * 1024


class PostFailedError(Exception):
    """There was no answer; the message says why, without the request."""


@dataclass(frozen=True)
class Answer:
    """What the other side said. `retry_after_s`: when it would like to be asked again, if it told."""

    status: int
    retry_after_s: int | None = None


def post(
    target: Target,
    addresses: Sequence[str],
    body: bytes,
    headers: Mapping[str, str],
    timeout_s: float,
    context: ssl.SSLContext | None = None,
) -> Answer:
    """The answer of the first of `addresses` that can be reached. Raises `PostFailedError`."""
    deadline = time.monotonic() + timeout_s
    connection = http.client.HTTPConnection(target.host, target.port, timeout=timeout_s)
    try:
        connected = _connect(target, addresses, deadline, context)
    except (OSError, ssl.SSLError) as error:
        raise PostFailedError(_why(error)) from error
    connection.sock = connected
    overdue = threading.Event()

    def hang_up() -> None:
        overdue.set()
        try:
            connected.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it has ended by itself

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), hang_up)
    timer.daemon = True
    timer.start()
    try:
        connection.request("POST", target.path, body, {"Host": target.authority, **headers})
        response = connection.getresponse()
        response.read(MAX_ANSWER_BYTES)
        if overdue.is_set():  # hung up on in the middle of its headers, which then look as if they had ended
            raise TimeoutError
        return Answer(response.status, _seconds(response.getheader("Retry-After")))
    except (OSError, http.client.HTTPException) as error:
        raise PostFailedError(f"no answer in {timeout_s:g} s" if overdue.is_set() else _why(error)) from error
    finally:
        timer.cancel()
        connection.close()
        connected.close()


def _connect(
    target: Target, addresses: Sequence[str], deadline: float, context: ssl.SSLContext | None
) -> socket.socket:
    last: OSError | None = None
    for address in addresses:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        try:
            plain = socket.create_connection((address, target.port), timeout=left)
        except OSError as error:
            last = error
            continue
        if target.scheme == "http":
            return plain
        try:
            plain.settimeout(max(0.01, deadline - time.monotonic()))
            return (context or ssl.create_default_context()).wrap_socket(plain, server_hostname=target.host)
        except OSError:
            plain.close()
            raise
    raise last or TimeoutError("timed out")


def _seconds(header: str | None) -> int | None:
    return int(header) if header is not None and header.isascii() and header.isdecimal() and len(header) < 9 else None


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
