"""In and out: by name and password, by an API token, by the one-time code of `covey console`; and the page on which somebody who
is invited chooses a password."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Form, Query, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import RedirectResponse

from covey_server import audit
from covey_server.api.security import (
    address_of,
    end_session,
    identify,
    require,
    set_session_cookie,
)
from covey_server.audit import Actor
from covey_server.console.html import ConsoleRoute, page
from covey_server.console.i18n import gettext as _
from covey_server.db.tables import ApiToken, Person
from covey_server.errors import Invalid, TooMany, Unauthorized
from covey_server.people import directory, passwords, sessions
from covey_server.people.roles import PERSON_ROLES
from covey_server.people.sessions import MAX_SECRET, Holder
from covey_server.services import Services, Use

router = APIRouter(route_class=ConsoleRoute)

Next = Annotated[str, Form(max_length=512)]
Secret = Annotated[str, Form(max_length=MAX_SECRET)]


@router.get("/login")
async def show(request: Request, use: Use, code: str = "", next: str = "/") -> Response:  # noqa: A002
    """The form; with `?code=` of `POST /api/v1/login-codes` the browser is in at once."""
    where = inside(next)
    if code:
        return _enter_by_code(request, use, code, where)
    if await identify(request) is not None and request.headers.get("authorization") is None:
        return RedirectResponse(where, 303)
    return _form(request, use, where)


@router.post("/login")
def log_in(
    request: Request,
    use: Use,
    name: Annotated[str, Form(max_length=64)] = "",
    password: Annotated[str, Form(max_length=passwords.MAX_LENGTH)] = "",
    token: Secret = "",
    next: Next = "/",  # noqa: A002
) -> Response:
    where = inside(next)
    if token:
        return _enter_by_token(request, use, token.strip(), where)
    now_ms = use.clock()
    try:
        person = directory.authenticate(use.database, name.strip(), password, address_of(request), now_ms)
    except Unauthorized:
        return _form(request, use, where, 401, _("There is nobody here with this name and password."), name)
    except TooMany as error:
        words = _("Too many attempts. Try again in {seconds} s.").format(seconds=error.extra["retry_after_s"])
        return _form(request, use, where, 429, words, name)
    return _let_in(request, use, Holder(person_id=person.id), Actor(person.name, person.role, _origin(request)), where)


@router.post("/logout")
def log_out(request: Request, use: Use, _actor: Annotated[Actor, Depends(require("viewer"))]) -> Response:
    response = RedirectResponse("/login", 303)
    with use.database.session() as session:
        end_session(session, request, response)
    return response


@router.get("/invitation")
def show_invitation(request: Request, use: Use, code: Annotated[str, Query(max_length=MAX_SECRET)] = "") -> Response:
    with use.database.reading() as session:
        person = _invited(session, code, use.clock())
    if person is None:
        return _no_invitation(request, use)
    return page(request, "invitation.html", name=person.name, code=code, problem="", shortest=passwords.MIN_LENGTH)


@router.post("/invitation")
def accept_invitation(request: Request, use: Use, code: Secret, password: Secret, again: Secret) -> Response:
    """Chooses the password and lets them in. The code is used up only then, so that a weak password can be mended."""
    now_ms = use.clock()
    with use.database.reading() as session:
        person = _invited(session, code, now_ms)
    if person is None:
        return _no_invitation(request, use)
    try:
        if password != again:
            raise Invalid(_("The two passwords are not the same."))
        kept = directory.new_password(person.name, password)
    except Invalid as error:
        words = {"name": person.name, "code": code, "problem": error.detail, "shortest": passwords.MIN_LENGTH}
        return page(request, "invitation.html", status=422, **words)
    with use.database.session() as session:
        if sessions.accept_invitation(session, code, now_ms) != person.id:
            return _no_invitation(request, use)  # somebody was quicker
        person = directory.find(session, person.name, lock=True)
        directory.set_password(session, person, kept, now_ms)
        person.last_login_ms = now_ms
        audit.record(
            session, Actor(person.name, person.role, _origin(request)), "person.password", person.name, {}, now_ms
        )
    return _let_in(request, use, Holder(person_id=person.id), Actor(person.name, person.role, _origin(request)), "/")


def inside(where: str) -> str:
    """An address of this console, whatever was asked for: nobody is sent elsewhere by a link to the login."""
    parts = urlsplit(where)
    plain = not parts.scheme and not parts.netloc and where.startswith("/") and not where.startswith(("//", "/\\"))
    return where if plain and where.isprintable() and "\\" not in where else "/"


def _form(
    request: Request, use: Services, where: str, status: int = 200, problem: str = "", name: str = ""
) -> Response:
    with use.database.reading() as session:
        people = session.scalar(select(Person.id).limit(1)) is not None
    return page(request, "login.html", status=status, where=where, problem=problem, name=name, people=people)


def _let_in(request: Request, use: Services, holder: Holder, actor: Actor, where: str) -> Response:
    now_ms = use.clock()
    with use.database.session() as session:
        secret = sessions.open_session(session, holder, now_ms, use.settings.session_s, address_of(request))
        audit.record(session, actor, "console.login", actor.name, {}, now_ms)
    response = RedirectResponse(where, 303)
    set_session_cookie(response, request, secret)
    return response


def _enter_by_token(request: Request, use: Services, secret: str, where: str) -> Response:
    now_ms = use.clock()
    with use.database.reading() as session:
        found = session.scalar(select(ApiToken).where(ApiToken.secret_hash == sessions.secret_hash(secret)))
        owner = session.get(Person, found.person_id) if found is not None and found.person_id is not None else None
    if found is None or not _may_enter(found, owner, now_ms):
        problem = _("This token is not known here, has ended, or is not for people.")
        return _form(request, use, where, 401, problem)
    actor = Actor(found.name if owner is None else owner.name, found.role, _origin(request))
    return _let_in(request, use, Holder(token_id=found.id), actor, where)


def _enter_by_code(request: Request, use: Services, code: str, where: str) -> Response:
    with use.database.session() as session:
        secret = sessions.exchange_login_code(session, code, use.clock(), use.settings.session_s, address_of(request))
    if secret is None:
        problem = _("This login link was used already or is too old. Ask for a new one: covey console")
        return _form(request, use, where, 401, problem)
    # A page and not a redirect: the cookie is SameSite=Strict, and a redirect still counts as coming from wherever the link was.
    response = page(request, "entered.html", where=where)
    set_session_cookie(response, request, secret)
    return response


def _may_enter(token: ApiToken, owner: Person | None, now_ms: int) -> bool:
    alive = token.revoked_ms is None and (token.expires_ms is None or token.expires_ms > now_ms)
    return alive and token.role in PERSON_ROLES and (owner is None or owner.disabled_ms is None)


def _invited(session: Session, code: str, now_ms: int) -> Person | None:
    person_id = sessions.invited(session, code, now_ms)
    person = None if person_id is None else session.get(Person, person_id)
    return None if person is None or person.disabled_ms is not None else person


def _no_invitation(request: Request, use: Services) -> Response:
    problem = _("This invitation was used already or is too old. Ask an administrator for a new one.")
    return _form(request, use, "/", 401, problem)


def _origin(request: Request) -> str:
    return f"console {address_of(request)}"
