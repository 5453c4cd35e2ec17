"""Pushing to a collector by OTLP/HTTP: one POST of protobuf, packed by gzip. Everything is bounded, and a collector may be away.

Source: OpenTelemetry protocol specification 1.x, "OTLP/HTTP": which answers are worth another try, `Retry-After`, partial success.
"""

from __future__ import annotations

import gzip
import http.client
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

from covey_agent.errors import UsageError

PATH = "/v1/metrics"
_TIMEOUT_S = 10.0
_MAX_ANSWER_BYTES = 64 * 1024
_TRANSIENT = (429, 502, 503, 504)
_LONGEST_WAIT_S = 300.0


class Away(Exception):  # noqa: N818  # what is said of a collector
    """The collector cannot be had now. `wait_s`: how long it asks to be left alone."""

    def __init__(self, words: str, wait_s: float = 0.0) -> None:
        super().__init__(words)
        self.wait_s = wait_s


class Refused(Exception):  # noqa: N818  # what the collector does
    """The collector does not take this, and would not later."""


@dataclass(frozen=True)
class Collector:
    """`headers` go with each push: a token, say."""

    address: SplitResult
    headers: Mapping[str, str]
    context: ssl.SSLContext | None = None

    def push(self, request: ExportMetricsServiceRequest) -> str:
        """What the collector has to say, empty as a rule. Raises `Away` or `Refused`."""
        headers = {"Content-Type": "application/x-protobuf", "Content-Encoding": "gzip", **self.headers}
        connection = self._connection()
        try:
            connection.request("POST", self.address.path, gzip.compress(request.SerializeToString(), 6), headers)
            answer = connection.getresponse()
            body = answer.read(_MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Away(f"{self.address.netloc} does not answer: {error}") from error
        finally:
            connection.close()
        if answer.status in _TRANSIENT:
            raise Away(f"{self.address.netloc} answers {answer.status}", _seconds(answer.getheader("Retry-After", "")))
        if answer.status // 100 != 2:
            raise Refused(f"{self.address.netloc} answers {answer.status} {answer.reason[:80]}")
        return _partial(body)

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self.address.hostname or "", self.address.port
        if self.address.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
        return http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=self.context)


def collector_of(endpoint: str, headers: list[str], ca: Path | None) -> Collector:
    """`endpoint` as OpenTelemetry's own settings have it, without the signal's path or with it. Raises `UsageError`."""
    address = urlsplit(endpoint)
    try:
        port = address.port
    except ValueError as error:
        raise UsageError(f"{endpoint!r}: {error}") from error
    if address.scheme not in ("http", "https") or not address.hostname or address.username is not None or port == 0:
        raise UsageError(f"{endpoint!r} is not an address: http://HOST:4318 or https://HOST[:PORT][/PATH]")
    path = address.path.rstrip("/")
    address = address._replace(path=path if path.endswith(PATH) else path + PATH, query="", fragment="")
    told = [one.partition("=") for one in headers]
    if any(not name.isascii() or not name.strip() or not equals or "\n" in value for name, equals, value in told):
        raise UsageError("a header is NAME=VALUE")
    context = None
    if address.scheme == "https":
        try:
            context = ssl.create_default_context(cafile=str(ca) if ca is not None else None)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"{ca} holds no certificates: {error}") from error
    return Collector(address, {name.strip(): value.strip() for name, _, value in told}, context)


def _seconds(text: str) -> float:
    """`Retry-After` in seconds; a date is taken for none."""
    return min(float(text), _LONGEST_WAIT_S) if text.isascii() and text.isdigit() and len(text) < 9 else 0.0


def _partial(body: bytes) -> str:
    try:
        told = ExportMetricsServiceResponse.FromString(body).partial_success
    except DecodeError:
        return ""  # some answer with JSON, or an empty page
    if told.rejected_data_points or told.error_message:
        return f"{told.rejected_data_points} points are not taken: {told.error_message[:200]}"
    return ""
