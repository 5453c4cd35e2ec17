"""The pages of campaigns: the list, one campaign live, and its buttons."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from covey_server.campaigns import commands
from covey_server.console import live
from covey_server.console.html import ConsoleRoute
from covey_server.console.live_pages import Viewer, live_page
from covey_server.core.engine import Action
from covey_server.services import Services, Use

router = APIRouter(route_class=ConsoleRoute)


@router.get("/campaigns")
def campaigns(request: Request, use: Use, _: Viewer) -> Response:
    return live_page(request, use, "campaigns", dict(request.query_params), "campaigns.html")


@router.get("/campaigns/{name}")
def campaign(request: Request, use: Use, name: str, _: Viewer) -> Response:
    given = {**live.parameters_of("campaign", request.query_params), "name": name}
    return live_page(request, use, "campaign", given, "campaign.html")


@router.post("/campaigns/{name}/{action}")
def act(request: Request, use: Use, name: str, action: Action, actor: Viewer) -> Response:
    """Tell it, if this role may; the answer is the live region as it is now, with the filters of the page that asked."""
    with use.database.session() as session:
        ordered = commands.act(session, name, action, actor, use.clock())
    announce(use, name, ordered)
    given = {**live.parameters_of("campaign", request.query_params), "name": name}
    with use.database.reading() as session:
        return Response(live.render(session, "campaign", given, use.clock()), media_type="text/html; charset=utf-8")


def announce(use: Services, name: str, ordered: bool) -> None:
    """Tell who looks and who works that this campaign has changed."""
    use.bus.publish("campaign", name)
    if use.campaigns is not None:
        use.campaigns.wake()
    if ordered and use.fleet is not None:
        use.fleet.wake()
