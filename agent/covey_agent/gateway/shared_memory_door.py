"""`/v2/systemsharedmemory/…`: where applications register and forget regions. Source: Triton's system shared memory extension."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import unquote

import msgspec

from covey_agent.gateway.errors import BadRequest
from covey_agent.gateway.http_messages import HttpRequest, HttpResponse
from covey_agent.gateway.shared_memory import Registration, SharedMemory

PREFIX = "/v2/systemsharedmemory/"
_PATH = re.compile(re.escape(PREFIX) + r"(?:region/([^/]{1,256})/)?(status|register|unregister)")
_NAME = re.compile(r"[ -~]{1,100}")
_MAX_BODY_BYTES = 4096


class SharedMemoryDoor:
    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory

    def handle(self, request: HttpRequest, path: str) -> HttpResponse:
        """Raises `BadRequest`."""
        match = _PATH.fullmatch(path)
        name = None if match is None or match[1] is None else unquote(match[1])
        if match is None or (match[2] == "register" and name is None):
            return HttpResponse(404, [b'{"error":"there is nothing at this path"}'])
        wanted = "GET" if match[2] == "status" else "POST"
        if request.method != wanted:
            return HttpResponse(
                405, [b'{"error":"this path takes %s"}' % wanted.encode()], headers=(("Allow", wanted),)
            )
        if name is not None and not _NAME.fullmatch(name):
            raise BadRequest("the name of a region has 1 to 100 printable ASCII characters")
        doors: dict[str, Callable[[], HttpResponse]] = {
            "status": lambda: HttpResponse(200, [msgspec.json.encode(self._memory.status(name))]),
            "register": lambda: self._register(name or "", request),
            "unregister": lambda: self._unregister(name),
        }
        return doors[match[2]]()

    def _register(self, name: str, request: HttpRequest) -> HttpResponse:
        if len(request.body) > _MAX_BODY_BYTES:
            raise BadRequest(f"the body is longer than {_MAX_BODY_BYTES} bytes")
        try:
            wanted = msgspec.json.decode(request.body, type=Registration)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(f"the request is not valid: {error}") from error
        self._memory.register(name, wanted)
        return HttpResponse(200)

    def _unregister(self, name: str | None) -> HttpResponse:
        if name is None:
            self._memory.unregister_all()
        else:
            self._memory.unregister(name)
        return HttpResponse(200)
