"""Who may do what: whom a request comes from, by API token or console session, and whether their role is enough.

Invariants: no secret is ever logged or put into an error; a cookie alone never changes anything, it needs the session's CSRF
token beside it; a token never does more than its owner may, whatever it was made for.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import delete, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from covey_server.audit import Actor
from covey_server.db.tables import ApiToken, ConsoleSession, Person
from covey_server.errors import Forbidden, Unauthorized
from covey_server.people.roles import Role, common, may
from covey_server.people.sessions import MAX_SECRET, Holder, secret_hash
from covey_server.services import Services, services

SESSION_COOKIE = "covey_session"
CSRF_HEADER = "X-CSRF-Token"
CSRF_FIELD = "csrf_token"
# It checks nothing; it marks the operations in the OpenAPI document that need a token.
_BEARER = HTTPBearer(auto_error=False, description="an API token; the console's session cookie does as well")
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_LAST_USED_EVERY_MS = 60_000


@dataclass(frozen=True)
class Identity:
    """Who a request comes from. `csrf` is the token that forms of a console session carry; None for API tokens.

    `holder` is the token or person that the session belongs to; for an API token, the token. `person_id`: the person behind it.
    `session` is the hash of the console session's secret. `in_person`: that person has logged in by name and password.
    """

    actor: Actor
    holder: Holder
    csrf: str | None
    person_id: int | None = None
    session: str = ""
    in_person: bool = False


def require(role: Role, *, checks_model: bool = False) -> Callable[[Request], Awaitable[Actor]]:
    """A FastAPI dependency: the `Actor`, if it may do what `role` may; else 401 or 403.

    A token that is for some models alone changes nothing through an endpoint unless that says `checks_model`, by which it
    promises to call `actor.check_model` for every model that it changes.
    """

    async def dependency(
        request: Request,
        _documented: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)] = None,
    ) -> Actor:
        found = await known(request)
        if not may(found.actor.role, role):
            raise Forbidden(f"this needs the role {role}; {found.actor.name} has the role {found.actor.role}")
        if found.actor.models is not None and request.method not in _SAFE and not checks_model:
            raise Forbidden(f"this token is for {', '.join(found.actor.models)} alone", code="other_model")
        return found.actor

    dependency.__name__ = f"require_{role}"
    return dependency


async def known(request: Request) -> Identity:
    """Who is asking, whatever their role. Raises `Unauthorized`, or `Forbidden` without the session's CSRF token."""
    found = await identify(request)
    if found is None:
        given = "authorization" in request.headers
        raise Unauthorized("this API token is unknown, revoked or expired" if given else None)
    if found.csrf is not None and request.method not in _SAFE:
        await _check_csrf(request, found.csrf)
    request.state.identity = found
    return found


async def identify(request: Request) -> Identity | None:
    """Who is asking, by token or session cookie; None if nobody that is known. Checks no role and no CSRF token."""
    use = services(request)
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    if scheme:
        if scheme.lower() != "bearer" or not 0 < len(bearer) <= MAX_SECRET:
            return None
        return await run_in_threadpool(_by_token, use, bearer, f"api {address_of(request)}")
    cookie = request.cookies.get(SESSION_COOKIE, "")
    if 0 < len(cookie) <= MAX_SECRET:
        return await run_in_threadpool(_by_session, use, cookie, f"console {address_of(request)}")
    return None


def address_of(request: Request) -> str:
    """The address that a request comes from."""
    return request.client.host if request.client else "unknown"


def csrf_token(request: Request) -> str:
    """The CSRF token for forms of this request's session; empty if it has none. Only after `require` or `identify`."""
    with services(request).database.reading() as session:
        found = session.get(ConsoleSession, secret_hash(request.cookies.get(SESSION_COOKIE, "")))
        return found.csrf if found is not None and found.kind == "session" else ""


def set_session_cookie(response: Response, request: Request, secret: str) -> None:
    response.set_cookie(
        SESSION_COOKIE,
        secret,
        max_age=services(request).settings.session_s,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
        path="/",
    )


def end_session(session: Session, request: Request, response: Response) -> None:
    """Log out: forget the session and take the cookie back."""
    held = secret_hash(request.cookies.get(SESSION_COOKIE, ""))
    session.execute(delete(ConsoleSession).where(ConsoleSession.secret_hash == held))
    response.delete_cookie(SESSION_COOKIE, path="/", httponly=True, samesite="strict")


# --- inside ----------------------------------------------------------------------------------------------------------


def _by_token(use: Services, secret: str, origin: str) -> Identity | None:
    now_ms = use.clock()
    with use.database.reading() as session:
        row = session.execute(
            select(ApiToken, Person)
            .outerjoin(Person, Person.id == ApiToken.person_id)
            .where(ApiToken.secret_hash == secret_hash(secret))
        ).first()
    if row is None:
        return None
    token, owner = row
    actor = _token_actor(token, owner, origin, now_ms)
    if actor is None:
        return None
    _note_use(use, token, now_ms)
    return Identity(actor, Holder(token_id=token.id), None, token.person_id, in_person=token.by_login)


def _by_session(use: Services, secret: str, origin: str) -> Identity | None:
    now_ms, held_as = use.clock(), secret_hash(secret)
    with use.database.reading() as session:
        held = session.get(ConsoleSession, held_as)
        if held is None or held.kind != "session" or held.expires_ms <= now_ms:
            return None
        token = session.get(ApiToken, held.token_id) if held.token_id is not None else None
        person_id = token.person_id if token is not None else held.person_id
        person = session.get(Person, person_id) if person_id is not None else None
    if token is not None:
        actor = _token_actor(token, person, origin, now_ms)
    else:
        actor = None if person is None or person.disabled_ms else Actor(person.name, person.role, origin)
    if actor is None:
        return None
    in_person = token is None or token.by_login
    return Identity(actor, Holder(held.token_id, held.person_id), held.csrf, person_id, held_as, in_person)


def _token_actor(token: ApiToken, owner: Person | None, origin: str, now_ms: int) -> Actor | None:
    """Whom a token acts as: its owner where it has one, with the role that both have; None if it is good for nothing."""
    if token.revoked_ms is not None or (token.expires_ms is not None and token.expires_ms <= now_ms):
        return None
    models = None if token.models is None else tuple(token.models)
    if owner is None:
        return Actor(token.name, token.role, origin, models)
    role = common(token.role, owner.role)
    if owner.disabled_ms is not None or role is None:
        return None
    return Actor(owner.name, role, f"{origin} token {token.name}", models)


def _note_use(use: Services, token: ApiToken, now_ms: int) -> None:
    if token.last_used_ms is not None and now_ms - token.last_used_ms < _LAST_USED_EVERY_MS:
        return
    with use.database.session() as session:
        held = session.get(ApiToken, token.id)
        if held is not None:
            held.last_used_ms = now_ms


async def _check_csrf(request: Request, expected: str) -> None:
    given = request.headers.get(CSRF_HEADER, "")
    kind = request.headers.get("content-type", "")
    if not given and kind.startswith(("application/x-www-form-urlencoded", "multipart/form-data")):
        form = await request.form()
        field = form.get(CSRF_FIELD)
        given = field if isinstance(field, str) else ""
        if not _same(given, expected):
            await form.close()  # nobody will read its files
    if not _same(given, expected):
        raise Forbidden("this change came without the session's CSRF token; load the page again", code="csrf")


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected.encode())
