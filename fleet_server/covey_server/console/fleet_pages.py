"""The pages of the fleet and its devices."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from covey_server.api.security import require
from covey_server.audit import Actor
from covey_server.console import device_view, html, live
from covey_server.console.html import ConsoleRoute
from covey_server.services import Use

router = APIRouter(route_class=ConsoleRoute)

Viewer = Annotated[Actor, Depends(require("viewer"))]


@router.get("/")
def fleet(request: Request, use: Use, _: Viewer) -> Response:
    return live_page(request, use, "fleet", {}, "fleet.html")


@router.get("/devices")
def devices(request: Request, use: Use, _: Viewer) -> Response:
    given = live.parameters_of("devices", request.query_params)
    with use.database.reading() as session:
        choices = device_view.choices(session)
    return live_page(request, use, "devices", given, "devices.html", choices=choices)


@router.get("/devices/{name}")
def device(request: Request, use: Use, name: str, _: Viewer) -> Response:
    return live_page(request, use, "device", {"name": name}, "device.html")


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
