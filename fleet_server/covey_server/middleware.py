"""What every request passes through: an id, a size limit, security headers, a log line, and the last net for errors.

Pure ASGI, so that streams and server-sent events pass unbuffered. Queries and headers are never logged: they may hold secrets.
"""

from __future__ import annotations

import logging
import re
import time

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from covey_server import logs, problems
from covey_server.errors import TooLarge
from covey_server.settings import Settings

log = logging.getLogger(__name__)

# Nothing from elsewhere, nothing inline, nothing evaluated.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_UPLOAD = re.compile(r"/api/v1/uploads/[^/]+")
_BUILD_FILE = re.compile(r"/api/v1/jobs/[^/]+/files/[^/]+")
# Workers ask for jobs every second.
_ROUTINE = re.compile(r"/api/v1/jobs/.*|/healthz|/readyz|/metrics")
_CHANGES = frozenset({"POST", "PUT", "PATCH", "DELETE"})


class Guard:
    """The outermost of our layers."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope["covey.request_id"] = problems.new_request_id()
        started = time.monotonic()
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                # The API's answers are nobody else's to keep; the console's assets say for themselves.
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        limit = self._limit(scope)
        with logs.about(request=request_id):
            try:
                if _announced(scope) > limit:
                    await problems.problem(_too_large(limit))(scope, receive, answer)
                else:
                    await self._app(scope, _counted(receive, limit), answer)
            except Exception as error:  # noqa: BLE001 - the last net: logged with its trace, answered without
                response = problems.unexpected(error, request_id)
                if status == 0:
                    await response(scope, receive, answer)
            finally:
                _log(scope, status, time.monotonic() - started, request_id)

    def _limit(self, scope: Scope) -> int:
        if scope["method"] == "PUT" and _BUILD_FILE.fullmatch(scope["path"]):
            return self._settings.build_file_max_bytes
        if scope["method"] == "PATCH" and _UPLOAD.fullmatch(scope["path"]):
            return self._settings.upload_max_bytes
        for name, value in scope["headers"]:
            if name == b"content-type" and value.startswith(b"multipart/form-data"):
                return self._settings.upload_max_bytes
        return self._settings.body_max_bytes


def _announced(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


def _counted(receive: Receive, limit: int) -> Receive:
    """`receive`, until the body is larger than `limit`."""
    total = 0

    async def counting() -> Message:
        nonlocal total
        message = await receive()
        if message["type"] == "http.request":
            total += len(message.get("body", b""))
            if total > limit:
                # The framework lets this kind pass while it reads a body; any other becomes "cannot be parsed".
                raise HTTPException(TooLarge.status, _too_large(limit).detail)
        return message

    return counting


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the request's body has more than {limit} bytes", limit=limit)


def _log(scope: Scope, status: int, seconds: float, request_id: str) -> None:
    tells = scope["method"] in _CHANGES and not _ROUTINE.fullmatch(scope["path"])
    level = logging.INFO if tells or status >= 500 else logging.DEBUG
    client = scope.get("client")
    log.log(
        level,
        "%s %s -> %s in %.0f ms (%s, request %s)",
        scope["method"],
        scope["path"],
        status or "no answer",
        seconds * 1000,
        client[0] if client else "unknown",
        request_id,
    )
