"""HTTP as the client needs it: JSON both ways, problem documents as errors, lists page by page, files as streams.

Every answer is read with a limit. Nothing is tried twice here: who calls knows whether that is safe.
"""

from __future__ import annotations

import hashlib
import http
import ipaddress
import json
import os
import ssl
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import httpx

from covey_client.errors import ApiError, BadAnswer, ClientError, Unreachable, Untrusted

Json = dict[str, Any]
# Told the bytes sent or received so far.
Progress = Callable[[int], None]
Params = Mapping[str, str | int | float | bool | None]

MAX_ANSWER_BYTES = 64 << 20
PAGE = 500
_CHUNK = 1 << 18
_MAX_CA_BYTES = 1 << 20
# OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH.
_OTHER_NAME = frozenset({62, 64})


class CountedFile:
    """A file that tells how much of it has been read. Only what a multipart upload asks of a file."""

    def __init__(self, file: BinaryIO, progress: Progress) -> None:
        self._file = file
        self._progress = progress

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._progress(self._file.tell())
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def fileno(self) -> int:
        return self._file.fileno()


class Transport:
    """Requests to one server. `timeout` is in seconds and for each step: connecting, sending or receiving a piece.

    `ca` is a file of certificates (PEM) that https is checked against, in place of the authorities this machine knows.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        timeout: float,
        transport: httpx.BaseTransport | None = None,
        ca: Path | None = None,
    ) -> None:
        self.url = check_url(url)
        if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
            raise ClientError("this is not a token: it has characters that no token has")
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=timeout,
            verify=True if ca is None or not self.url.startswith("https:") else trusting(ca),
            # A proxy from the environment has no way to our own machine.
            trust_env=not _loopback(self.url),
            transport=transport,
        )
        # Whoever forgets to close it leaves no socket open.
        self.close = weakref.finalize(self, self._http.close)

    def json(self, method: str, path: str, **options: Any) -> Json:
        """The answer's JSON object; {} where there is no content."""
        body = self.raw(method, path, **options)
        if not body:
            return {}
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise BadAnswer(f"{self.url}{path} answered something that is not JSON; is this a Covey server?") from error
        if not isinstance(answer, dict):
            raise BadAnswer(f"{self.url}{path} answered JSON that is not an object; is this a Covey server?")
        return answer

    def items(
        self, path: str, params: Params | None = None, cursor: str = "after", limit: int | None = None
    ) -> list[Json]:
        """All items of a list, page by page; at most `limit`."""
        found: list[Json] = []
        query: dict[str, Any] = {**given(params or {}), "limit": min(PAGE, limit or PAGE)}
        while True:
            page = self.json("GET", path, params=query)
            items = page.get("items")
            if not isinstance(items, list):
                raise BadAnswer(f"{self.url}{path} answered no list")
            found += items
            following = page.get("next")
            if limit is not None and len(found) >= limit:
                return found[:limit]
            # A cursor that does not move would go on for ever.
            if following is None or not items or str(following) == str(query.get(cursor)):
                return found
            query[cursor] = following

    def raw(self, method: str, path: str, *, timeout: float | None = None, **options: Any) -> bytes:
        """The answer's body, of at most `MAX_ANSWER_BYTES`."""
        if timeout is not None:
            options["timeout"] = timeout
        body = bytearray()
        for chunk in self._stream(method, path, MAX_ANSWER_BYTES, options):
            body += chunk
        return bytes(body)

    def download(self, path: str, to: Path, sha256: str, limit: int, progress: Progress | None = None) -> int:
        """Stream a file to `to`, which appears only once its SHA-256 is right; its size. Raises `BadAnswer` otherwise."""
        part = to.with_name(f"{to.name}.part")
        digest = hashlib.sha256()
        size = 0
        try:
            with part.open("wb") as file:
                for chunk in self._stream("GET", path, limit, {}):
                    file.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
                    if progress is not None:
                        progress(size)
            if digest.hexdigest() != sha256:
                raise BadAnswer(f"the file that came as {sha256[:12]}… has the SHA-256 {digest.hexdigest()}")
            part.replace(to)
        finally:
            part.unlink(missing_ok=True)
        return size

    def save(self, path: str, to: Path, limit: int, method: str = "GET", **options: Any) -> int:
        """Stream an answer to `to`, which appears only once all of it is there; its size."""
        part = to.with_name(f"{to.name}.part")
        size = 0
        try:
            with part.open("wb") as file:
                for chunk in self._stream(method, path, limit, options):
                    size += file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            part.replace(to)
        finally:
            part.unlink(missing_ok=True)
        return size

    def upload(self, path: str, file: Path, params: Params, progress: Progress | None = None) -> Json:
        """PUT a file's bytes as a stream."""

        def chunks() -> Iterator[bytes]:
            sent = 0
            with file.open("rb") as opened:
                while data := opened.read(_CHUNK):
                    yield data
                    sent += len(data)
                    if progress is not None:
                        progress(sent)

        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(file.stat().st_size)}
        return self.json("PUT", path, params=given(params), content=chunks(), headers=headers)

    def headers(self, method: str, path: str, **options: Any) -> Mapping[str, str]:
        """The headers of a good answer, whose body is not of interest."""
        found: dict[str, str] = {}
        for _ in self._stream(method, path, MAX_ANSWER_BYTES, options, found):
            pass
        return httpx.Headers(found)

    def _stream(
        self, method: str, path: str, limit: int, options: Json, headers: dict[str, str] | None = None
    ) -> Iterator[bytes]:
        """The body of a good answer, piece by piece, and its headers into `headers`; a bad one is raised as `ApiError`."""
        try:
            with self._http.stream(method, path, **options) as response:
                if response.is_redirect or response.is_informational:
                    raise BadAnswer(f"{self.url}{path} answered {response.status_code}; is this a Covey server?")
                if headers is not None:
                    headers.update(response.headers)
                size = 0
                bad = bytearray()
                for chunk in response.iter_bytes(_CHUNK):
                    size += len(chunk)
                    if size > limit:
                        raise BadAnswer(f"{self.url}{path} answered more than {limit} bytes")
                    if response.is_error:
                        bad += chunk
                    else:
                        yield chunk
                if response.is_error:
                    raise problem(response.status_code, bytes(bad))
        except httpx.ConnectError as error:
            raise self._not_connected(error) from error
        except httpx.TimeoutException as error:
            raise Unreachable(f"{self.url} does not answer in time") from error
        except httpx.TransportError as error:
            # A port that speaks TLS hangs up on plain HTTP.
            hint = "; if it speaks HTTPS, its address begins with https://" if self.url.startswith("http:") else ""
            words = f"the connection to {self.url} broke ({error or type(error).__name__}){hint}"
            raise Unreachable(words) from error
        except (httpx.InvalidURL, httpx.DecodingError) as error:
            raise ClientError(f"{self.url}: {error}") from error

    def _not_connected(self, error: httpx.ConnectError) -> ClientError:
        """What a failed connection means, and what to do about it where it is TLS."""
        cause = _tls_error(error)
        if cause is None:
            return Unreachable(f"no server answers at {self.url} ({error})")
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = cause.verify_message.rstrip(".")
            if cause.verify_code in _OTHER_NAME:
                return Untrusted(
                    f"the certificate of {self.url} is for another name ({reason}); use a name that it is for, "
                    "or start the server with --public-host NAME"
                )
            return Untrusted(
                f"the certificate of {self.url} is not trusted ({reason}); `covey login {self.url} --ca FILE` (or --ca, "
                "or COVEY_CA) trusts the fleet's CA: ca/root.pem in the server's data folder"
            )
        if cause.reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST"}:
            return Unreachable(
                f"{self.url} does not speak HTTPS; if it is a plain server, its address begins with http://"
            )
        return Unreachable(f"no TLS connection to {self.url} ({cause.reason or cause})")


def trusting(ca: Path) -> ssl.SSLContext:
    """TLS that trusts the certificates in this file and no other; raises `ClientError` if it holds none."""
    try:
        with ca.open("rb") as file:
            pem = file.read(_MAX_CA_BYTES).decode("ascii", "replace")
    except OSError as error:
        raise ClientError(f"CA file {ca}: {error.strerror or error}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError) as error:
        raise ClientError(f"CA file {ca} holds no certificate in PEM") from error
    return context


def _tls_error(error: BaseException) -> ssl.SSLError | None:
    """The TLS error that an error of httpx comes from."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    return cause


def problem(status: int, body: bytes) -> ApiError:
    """The error that an answer tells of: a problem document, or whatever a proxy in between made of it."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = {}
    if not isinstance(document, dict):
        document = {}
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = "error"
    known = {"type", "title", "status", "detail", "code"}
    return ApiError(
        status,
        title=str(document.get("title") or phrase),
        detail=str(document.get("detail") or f"the server answered {status} {phrase}"),
        code=str(document.get("code") or f"http_{status}"),
        extra={key: value for key, value in document.items() if key not in known},
    )


def check_url(url: str) -> str:
    """The address of a server without a slash at its end; raises `ClientError` if it is none."""
    try:
        parsed = httpx.URL(url.strip())
    except httpx.InvalidURL as error:
        raise ClientError(f"server address {url!r}: {error}") from error
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ClientError(f"server address {url!r}: it has the form http://HOST:PORT or https://HOST")
    return str(parsed).rstrip("/")


def given(params: Params) -> dict[str, str | int | float]:
    """The parameters that have a value, as queries spell them."""
    return {
        key: (str(value).lower() if isinstance(value, bool) else value)
        for key, value in params.items()
        if value is not None
    }


def _loopback(url: str) -> bool:
    host = httpx.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
