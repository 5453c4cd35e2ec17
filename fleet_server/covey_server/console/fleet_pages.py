"""The first page, and what a person prefers: language and appearance."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from starlette.responses import RedirectResponse

from covey_server.console import html, i18n
from covey_server.console.html import ConsoleRoute
from covey_server.console.live_pages import Viewer, live_page
from covey_server.console.login import inside
from covey_server.services import Use

router = APIRouter(route_class=ConsoleRoute)

_YEAR_S = 365 * 86_400


@router.get("/")
def fleet(request: Request, use: Use, _: Viewer) -> Response:
    return live_page(request, use, "fleet", {}, "fleet.html")


@router.post("/preferences")
def prefer(
    request: Request,
    language: Annotated[str, Form(max_length=16)] = "",
    theme: Annotated[str, Form(max_length=16)] = "",
    next: Annotated[str, Form(max_length=2048)] = "/",  # noqa: A002
) -> Response:
    """Kept in this browser. Nobody has to be logged in, and nothing on the server changes."""
    response = RedirectResponse(inside(next), 303)
    for cookie, value, known in ((i18n.COOKIE, language, i18n.LANGUAGES), (html.THEME_COOKIE, theme, html.THEMES)):
        if value in known:
            secure = request.url.scheme == "https"
            response.set_cookie(cookie, value, max_age=_YEAR_S, samesite="lax", secure=secure, path="/")
    return response
