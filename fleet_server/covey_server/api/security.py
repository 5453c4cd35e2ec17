"""Who may do what: API tokens, console sessions, roles.

Invariants: only hashes of secrets are kept (SHA-256 of 256 random bits); no secret is ever logged or put into an error; a
cookie alone never changes anything, it needs the session's CSRF token beside it. Every role of people includes viewer, and
admin includes all. Operator and approver stand side by side: who runs campaigns does not approve them. `worker` is for build
workers alone.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import delete, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from covey_server.audit import Actor
from covey_server.db.tables import ApiToken, ConsoleSession
from covey_server.errors import Forbidden, Unauthorized
from covey_server.services import Services, services

Role = Literal["viewer", "operator", "approver", "admin", "worker"]
ROLES: tuple[Role, ...] = ("viewer", "operator", "approver", "admin", "worker")
_MAY: dict[str, frozenset[str]] = {
    "viewer": frozenset({"viewer"}),
    "operator": frozenset({"viewer", "operator"}),
    "approver": frozenset({"viewer", "approver"}),
    "admin": frozenset(ROLES),
    "worker": frozenset({"worker"}),
}
SESSION_COOKIE = "covey_session"
CSRF_HEADER = "X-CSRF-Token"
CSRF_FIELD = "csrf_token"
TOKEN_PREFIX = "covey_"  # noqa: S105 - what tokens begin with
# It checks nothing; it marks the operations in the OpenAPI document that need a token.
_BEARER = HTTPBearer(auto_error=False, description="an API token; the console's session cookie does as well")
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_MAX_SECRET = 256
_LAST_USED_EVERY_MS = 60_000


def new_secret(prefix: str = "") -> str:
    """256 random bits as text."""
    return prefix + secrets.token_urlsafe(32)


def secret_hash(secret: str) -> str:
    """What is kept of a secret. Fast on purpose: 256 random bits cannot be guessed, however fast one tries."""
    return hashlib.sha256(secret.encode()).hexdigest()


@dataclass(frozen=True)
class Identity:
    """Who a request comes from. `csrf` is the token that forms of a console session carry; None for API tokens."""

    actor: Actor
    token_id: int
    csrf: str | None


def require(role: Role) -> Callable[[Request], Awaitable[Actor]]:
    """A FastAPI dependency: the `Actor`, if it may do what `role` may; else 401 or 403."""

    async def dependency(
        request: Request,
        _documented: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)] = None,
    ) -> Actor:
        found = await identify(request)
        if found is None:
            given = "authorization" in request.headers
            raise Unauthorized("this API token is unknown, revoked or expired" if given else None)
        if role not in _MAY.get(found.actor.role, frozenset()):
            raise Forbidden(f"this needs the role {role}; {found.actor.name} has the role {found.actor.role}")
        if found.csrf is not None and request.method not in _SAFE:
            await _check_csrf(request, found.csrf)
        request.state.identity = found
        return found.actor

    dependency.__name__ = f"require_{role}"
    return dependency


async def identify(request: Request) -> Identity | None:
    """Who is asking, by token or session cookie; None if nobody that is known. Checks no role and no CSRF token."""
    use = services(request)
    host = request.client.host if request.client else "unknown"
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    if scheme:
        if scheme.lower() != "bearer" or not 0 < len(bearer) <= _MAX_SECRET:
            return None
        return await run_in_threadpool(_by_token, use, bearer, f"api {host}")
    cookie = request.cookies.get(SESSION_COOKIE, "")
    if 0 < len(cookie) <= _MAX_SECRET:
        return await run_in_threadpool(_by_session, use, cookie, f"console {host}")
    return None


def csrf_token(request: Request) -> str:
    """The CSRF token for forms of this request's session; empty if it has none. Only after `require` or `identify`."""
    with services(request).database.reading() as session:
        found = session.get(ConsoleSession, secret_hash(request.cookies.get(SESSION_COOKIE, "")))
        return found.csrf if found is not None and found.kind == "session" else ""


# --- login to the console ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoginCode:
    code: str
    expires_ms: int


def create_login_code(session: Session, token_id: int, now_ms: int, seconds: int) -> LoginCode:
    """A one-time code that `exchange_login_code` turns into a session of the same person."""
    code, expires_ms = new_secret(), now_ms + seconds * 1000
    session.add(
        ConsoleSession(
            secret_hash=secret_hash(code),
            kind="code",
            token_id=token_id,
            csrf="",
            created_ms=now_ms,
            expires_ms=expires_ms,
        )
    )
    return LoginCode(code, expires_ms)


def exchange_login_code(session: Session, code: str, now_ms: int, seconds: int) -> str | None:
    """The secret of a new session for the cookie, or None if the code is unknown, used or too old. A code works once."""
    found = session.scalar(
        select(ConsoleSession)
        .where(ConsoleSession.secret_hash == secret_hash(code[:_MAX_SECRET]), ConsoleSession.kind == "code")
        .with_for_update()
    )
    if found is None:
        return None
    session.delete(found)
    if found.expires_ms <= now_ms:
        return None
    secret = new_secret()
    session.add(
        ConsoleSession(
            secret_hash=secret_hash(secret),
            kind="session",
            token_id=found.token_id,
            csrf=new_secret(),
            created_ms=now_ms,
            expires_ms=now_ms + seconds * 1000,
        )
    )
    return secret


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
        token = session.scalar(select(ApiToken).where(ApiToken.secret_hash == secret_hash(secret)))
        if token is None or not _good(token, now_ms):
            return None
    _note_use(use, token, now_ms)
    return Identity(Actor(token.name, token.role, origin), token.id, None)


def _by_session(use: Services, secret: str, origin: str) -> Identity | None:
    now_ms = use.clock()
    with use.database.reading() as session:
        row = session.execute(
            select(ConsoleSession, ApiToken)
            .join(ApiToken, ApiToken.id == ConsoleSession.token_id)
            .where(ConsoleSession.secret_hash == secret_hash(secret), ConsoleSession.kind == "session")
        ).first()
    if row is None:
        return None
    held, token = row
    if held.expires_ms <= now_ms or not _good(token, now_ms):
        return None
    return Identity(Actor(token.name, token.role, origin), token.id, held.csrf)


def _good(token: ApiToken, now_ms: int) -> bool:
    return token.revoked_ms is None and (token.expires_ms is None or token.expires_ms > now_ms)


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
    return hmac.compare_digest(given.encode(), expected.encode())
