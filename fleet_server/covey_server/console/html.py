"""Templates, and how console pages answer: HTML for people, also when something goes wrong.

Invariants: autoescape is on for every template; nothing inline (no script, no style attribute), since the content security
policy forbids it; who is not logged in is sent to the login page.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse

from covey_contract.errors import ContractError
from covey_server import __version__
from covey_server.api.security import Identity
from covey_server.console import words
from covey_server.errors import Invalid, ServerError, Unauthorized

HERE = Path(__file__).parent
NAVIGATION = (
    ("/", "Fleet", "fleet"),
    ("/devices", "Devices", "devices"),
    ("/models", "Models", "models"),
    ("/campaigns", "Campaigns", "campaigns"),
    ("/groups", "Groups", "groups"),
    ("/audit", "Audit", "audit"),
)


def _timestamp(at_ms: int | None, now_ms: int) -> Markup:
    """Relative, with the absolute time in the title; the page's script keeps it true."""
    if at_ms is None:
        return Markup("–")
    return Markup('<time datetime="{}" title="{}" data-ms="{}">{}</time>').format(
        words.iso(at_ms), words.absolute(at_ms), at_ms, words.ago(now_ms - at_ms)
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        ms=words.milliseconds,
        bytes=words.megabytes,
        percent=words.percent,
        number=words.number,
        duration=words.duration,
        words=words.words,
        plain=words.plain,
        limits=words.limits,
        entry=words.entry,
        path=lambda text: quote(str(text), safe=""),
        pretty=lambda value: json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False),
        json=lambda value: json.dumps(value, separators=(",", ":"), allow_nan=False),
    )
    environment.globals.update(
        look=words.look, drop=words.points, when=_timestamp, navigation=NAVIGATION, version=__version__
    )
    environment.globals["parts"] = environment.get_template("parts.html").module
    return environment


ENVIRONMENT = _environment()


def render(template: str, **context: Any) -> str:
    return ENVIRONMENT.get_template(template).render(**context)


def page(request: Request, template: str, *, status: int = 200, **context: Any) -> HTMLResponse:
    """A whole page. `request.state.identity` is there after `require`; pages before the login have none."""
    identity: Identity | None = getattr(request.state, "identity", None)
    actor = identity.actor if identity is not None else None
    csrf = (identity.csrf or "") if identity is not None else ""
    return HTMLResponse(render(template, actor=actor, csrf=csrf, here=request.url.path, **context), status)


def wants_fragment(request: Request) -> bool:
    """Whether htmx asks, on behalf of a part of a page."""
    return request.headers.get("hx-request") == "true"


class ConsoleRoute(APIRoute):
    """Answers errors with a page, or, where htmx asks, with the sentence that its notice shows."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except ServerError as error:
                return _error(request, error)
            except ContractError as error:
                return _error(request, Invalid(str(error)[:500]))
            except RequestValidationError as error:
                return _error(request, Invalid(_first(error)))
            except HTTPException as error:
                # A body that is too large or is no form, told by the framework.
                return _error_page(request, error.status_code, "Cannot do that", error.detail)

        return answer


def _first(error: RequestValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'][1:])}: {first['msg']}"


def _error(request: Request, error: ServerError) -> Response:
    if isinstance(error, Unauthorized):
        if wants_fragment(request):
            return Response(status_code=401, headers={"HX-Redirect": "/login"})
        if request.method == "GET":
            where = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            return RedirectResponse(f"/login?next={quote(where, safe='')}", 303)
    return _error_page(request, error.status, error.title, error.detail)


def _error_page(request: Request, status: int, title: str, detail: str) -> Response:
    if wants_fragment(request):
        return Response(detail, status, media_type="text/plain; charset=utf-8")
    return page(request, "error.html", status=status, title=title, detail=detail, status_code=status)
