"""A span for each request, around everything else that happens to it. Only there where something is traced."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from covey_server.tracing.spans import Tracing


class TraceRequests:
    """Pure ASGI. The span's name is the route as it is declared, so that names of models and devices make no names of spans."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app, self._tracing = app, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"traceparent"), b"")
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self._tracing.request(scope["method"], given[:128].decode("ascii", "replace")) as span:
            try:
                await self._app(scope, receive, answer)
            finally:
                route = scope.get("route")
                span.answered(str(getattr(route, "path", "")), status)
