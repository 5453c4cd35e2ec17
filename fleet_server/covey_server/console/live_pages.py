"""The event streams of the pages. One per page and browser tab."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import StreamingResponse

from covey_server.api.security import require
from covey_server.audit import Actor
from covey_server.console import live
from covey_server.console.html import ConsoleRoute
from covey_server.console.stream import Hub
from covey_server.services import Use

router = APIRouter(route_class=ConsoleRoute)


@router.get("/live/{region}")
async def stream(
    request: Request, region: str, use: Use, _: Annotated[Actor, Depends(require("viewer"))]
) -> StreamingResponse:
    """Events "live" with the region's HTML, "gone" with a sentence where what it shows is no more."""
    parameters = live.parameters_of(region, request.query_params)
    hub: Hub | None = getattr(request.app.state, "console_hub", None)
    if hub is None:
        hub = request.app.state.console_hub = Hub(use)
    hub.check_room()
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(hub.watch(region, parameters), media_type="text/event-stream", headers=headers)
