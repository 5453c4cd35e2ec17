"""`/v2/covey/lock`: where applications lock the device (POST), let it go (DELETE) and see who holds it (GET)."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from covey_agent.gateway.errors import BadRequest
from covey_agent.gateway.http_messages import HttpRequest, HttpResponse
from covey_agent.gateway.locks import LockRequest, Locks, TooManyLocksError, UnlockRequest

PATH = "/v2/covey/lock"
_MAX_BODY_BYTES = 4096

R = TypeVar("R", LockRequest, UnlockRequest)


class LockDoor:
    def __init__(self, locks: Locks) -> None:
        self._locks = locks

    async def handle(self, request: HttpRequest) -> HttpResponse:
        """Raises `BadRequest`."""
        if request.method == "GET":
            return _json({"locks": self._locks.held()})
        if request.method == "POST":
            try:
                lock = self._locks.take(_read(LockRequest, request))
            except TooManyLocksError as error:
                return _json({"error": str(error)}, 429)
            return _json({"owner": lock.owner, "expires_ms": lock.expires_ms, "durable": await self._locks.save()})
        if request.method == "DELETE":
            released = self._locks.release(_read(UnlockRequest, request).owner)
            return _json({"released": released, "durable": await self._locks.save()})
        return HttpResponse(
            405, [b'{"error":"this path takes GET, POST and DELETE"}'], headers=(("Allow", "GET, POST, DELETE"),)
        )


def _read(kind: type[R], request: HttpRequest) -> R:
    if len(request.body) > _MAX_BODY_BYTES:
        raise BadRequest(f"the body is longer than {_MAX_BODY_BYTES} bytes")
    try:
        return msgspec.json.decode(request.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the request is not valid: {error}") from error


def _json(body: object, status: int = 200) -> HttpResponse:
    return HttpResponse(status, [msgspec.json.encode(body)])
