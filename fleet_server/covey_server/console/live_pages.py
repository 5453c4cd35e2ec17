"""Pages around a live region, and the event streams that keep these fresh: one stream per page and browser tab."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.responses import StreamingResponse

from covey_server.api.security import require
from covey_server.audit import Actor
from covey_server.console import html, i18n, live
from covey_server.console.html import ConsoleRoute
from covey_server.console.stream import Hub
from covey_server.services import Use

router = APIRouter(route_class=ConsoleRoute)

Viewer = Annotated[Actor, Depends(require("viewer"))]


@router.get("/live/{region}")
async def stream(request: Request, region: str, use: Use, _: Viewer) -> StreamingResponse:
    """Events "live" with the region's HTML, "gone" with a sentence where what it shows is no more."""
    parameters = live.parameters_of(region, request.query_params)
    hub: Hub | None = getattr(request.app.state, "console_hub", None)
    if hub is None:
        hub = request.app.state.console_hub = Hub(use)
    hub.check_room()
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    events = hub.watch(region, parameters, i18n.current())
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


def live_page(
    request: Request, use: Use, region: str, parameters: dict[str, str], template: str, **context: Any
) -> Response:
    """A page around a live region, which is on it from the start; the stream keeps it fresh."""
    now_ms = use.clock()
    checked = live.parameters_of(region, parameters)
    found = live.find(region)
    with use.database.reading() as session:
        shown = found.context(session, checked, now_ms)
    stream = live.address(region, checked)
    return html.page(request, template, now=now_ms, stream=stream, region=found.template, **shown, **context)
