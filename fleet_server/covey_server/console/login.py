"""In and out: by an API token, or by the one-time code of `covey console`."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Form, Request, Response
from sqlalchemy import select
from starlette.responses import RedirectResponse

from covey_server import audit
from covey_server.api.security import (
    create_login_code,
    end_session,
    exchange_login_code,
    identify,
    require,
    secret_hash,
    set_session_cookie,
)
from covey_server.audit import Actor
from covey_server.console.html import ConsoleRoute, page
from covey_server.db.tables import ApiToken
from covey_server.services import Services, Use

router = APIRouter(route_class=ConsoleRoute)

_PEOPLE = ("viewer", "operator", "approver", "admin")
_MAX_SECRET = 256


@router.get("/login")
async def show(request: Request, use: Use, code: str = "", next: str = "/") -> Response:  # noqa: A002
    """The form; with `?code=` of `POST /api/v1/login-codes` the browser is in at once."""
    where = inside(next)
    if code:
        return _enter_by_code(request, use, code, where)
    if await identify(request) is not None and request.headers.get("authorization") is None:
        return RedirectResponse(where, 303)
    return page(request, "login.html", where=where, problem="")


@router.post("/login")
def log_in(
    request: Request,
    use: Use,
    token: Annotated[str, Form(max_length=_MAX_SECRET)] = "",
    next: Annotated[str, Form(max_length=512)] = "/",  # noqa: A002
) -> Response:
    where, now_ms = inside(next), use.clock()
    with use.database.session() as session:
        found = session.scalar(select(ApiToken).where(ApiToken.secret_hash == secret_hash(token.strip())))
        if found is None or not _may_enter(found, now_ms):
            problem = "This token is not known here, has ended, or is not for people."
            return page(request, "login.html", status=401, where=where, problem=problem)
        code = create_login_code(session, found.id, now_ms, 60)
        secret = exchange_login_code(session, code.code, now_ms, use.settings.session_s)
        audit.record(session, _actor(request, found), "console.login", found.name, {}, now_ms)
    response = RedirectResponse(where, 303)
    if secret is not None:
        set_session_cookie(response, request, secret)
    return response


@router.post("/logout")
def log_out(request: Request, use: Use, _: Annotated[Actor, Depends(require("viewer"))]) -> Response:
    response = RedirectResponse("/login", 303)
    with use.database.session() as session:
        end_session(session, request, response)
    return response


def inside(where: str) -> str:
    """An address of this console, whatever was asked for: nobody is sent elsewhere by a link to the login."""
    parts = urlsplit(where)
    plain = not parts.scheme and not parts.netloc and where.startswith("/") and not where.startswith(("//", "/\\"))
    return where if plain and where.isprintable() and "\\" not in where else "/"


def _enter_by_code(request: Request, use: Services, code: str, where: str) -> Response:
    with use.database.session() as session:
        secret = exchange_login_code(session, code, use.clock(), use.settings.session_s)
    if secret is None:
        problem = "This login link was used already or is too old. Ask for a new one: covey console"
        return page(request, "login.html", status=401, where=where, problem=problem)
    # A page and not a redirect: the cookie is SameSite=Strict, and a redirect still counts as coming from wherever the link was.
    response = page(request, "entered.html", where=where)
    set_session_cookie(response, request, secret)
    return response


def _may_enter(token: ApiToken, now_ms: int) -> bool:
    alive = token.revoked_ms is None and (token.expires_ms is None or token.expires_ms > now_ms)
    return alive and token.role in _PEOPLE


def _actor(request: Request, token: ApiToken) -> Actor:
    host = request.client.host if request.client else "unknown"
    return Actor(token.name, token.role, f"console {host}")
