"""Talking to the gateway: one request, one answer, one connection each, over its Unix socket. Every read has a limit and a deadline."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import TypeVar

import msgspec

from covey_agent.errors import GatewayError, StepError
from covey_agent.gateway.control_api import (
    MAX_LINE_BYTES,
    Answer,
    Collect,
    Collected,
    Done,
    Failure,
    GatewayStatus,
    GetStatus,
    Load,
    Loaded,
    Request,
)

A = TypeVar("A", Done, Loaded, GatewayStatus, Collected)
_decoder: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)
_encoder = msgspec.json.Encoder()


class GatewayClient:
    """Raises `GatewayError` if nobody answers in time, `StepError` if the answer is a failure."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self, request: Load) -> Loaded:
        return self._expect(Loaded, request, request.timeout_s + 10.0)

    def status(self) -> GatewayStatus:
        return self._expect(GatewayStatus, GetStatus(), 5.0)

    def collect(self) -> Collected:
        return self._expect(Collected, Collect(), 5.0)

    def do(self, request: Request, timeout_s: float = 15.0) -> None:
        """Switch, settle, revert, unload, shut down."""
        self._expect(Done, request, timeout_s)

    def _expect(self, kind: type[A], request: Request, timeout_s: float) -> A:
        answer = self._call(request, timeout_s)
        if isinstance(answer, Failure):
            raise StepError(answer.reason, answer.detail)
        if not isinstance(answer, kind):
            raise GatewayError(f"the gateway answered {type(request).__name__} with {type(answer).__name__}")
        return answer

    def _call(self, request: Request, timeout_s: float) -> Answer:
        deadline = time.monotonic() + timeout_s
        line = bytearray()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(min(timeout_s, 5.0))
                connection.connect(str(self._path))
                connection.sendall(_encoder.encode(request) + b"\n")
                while not line.endswith(b"\n"):
                    connection.settimeout(max(0.01, deadline - time.monotonic()))
                    chunk = connection.recv(65536)
                    if not chunk or len(line) + len(chunk) > MAX_LINE_BYTES:
                        raise GatewayError("the gateway's answer broke off" if not chunk else "the answer is too long")
                    line += chunk
            return _decoder.decode(line)
        except OSError as error:
            raise GatewayError(f"the gateway does not answer {type(request).__name__}: {error}") from error
        except (msgspec.DecodeError, ValueError) as error:
            raise GatewayError(f"the gateway's answer cannot be read: {error}") from error
