"""API tokens, who one is, and one-time codes for the console."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field
from sqlalchemy import select

from covey_server import audit, tokens
from covey_server.api.paging import Page
from covey_server.api.security import ROLES, Identity, Role, create_login_code, identify, require
from covey_server.audit import Actor
from covey_server.db.tables import ApiToken
from covey_server.errors import Conflict, Forbidden, Invalid, NotFound, Unauthorized
from covey_server.problems import responses
from covey_server.services import Use

router = APIRouter(prefix="/api/v1", tags=["people"], responses=responses(Unauthorized, Forbidden))


class WhoAmI(BaseModel):
    name: str
    role: str = Field(description=f"one of {', '.join(ROLES)}")


class NewToken(BaseModel):
    name: str = Field(pattern=tokens.NAME_PATTERN, examples=["ci-pipeline"])
    role: Role
    ttl_s: int | None = Field(default=None, ge=60, le=3650 * 86_400, description="default: the setting token_s")


class TokenView(BaseModel):
    name: str
    role: str
    created_ms: int
    expires_ms: int | None
    last_used_ms: int | None
    revoked_ms: int | None


class CreatedToken(TokenView):
    token: str = Field(description="the secret; it is never shown again")


class LoginCodeView(BaseModel):
    code: str = Field(description="open /login?code=CODE in a browser; it works once")
    expires_ms: int


async def _any_role(request: Request) -> Actor:
    found = await identify(request)
    if found is None:
        raise Unauthorized
    return found.actor


@router.get("/whoami", summary="Whose token this is")
def whoami(actor: Annotated[Actor, Depends(_any_role)]) -> WhoAmI:
    return WhoAmI(name=actor.name, role=actor.role)


@router.get("/tokens", summary="List the API tokens")
def list_tokens(use: Use, _: Annotated[Actor, Depends(require("admin"))]) -> Page[TokenView]:
    with use.database.reading() as session:
        found = session.scalars(select(ApiToken).order_by(ApiToken.name).limit(1000)).all()
    return Page(items=[_view(one) for one in found])


@router.post("/tokens", summary="Create an API token", status_code=201, responses=responses(Conflict, Invalid))
def create_token(use: Use, body: NewToken, actor: Annotated[Actor, Depends(require("admin"))]) -> CreatedToken:
    now_ms = use.clock()
    seconds = body.ttl_s or use.settings.token_s
    with use.database.session() as session:
        token, secret = tokens.create(session, body.name, body.role, now_ms, now_ms + seconds * 1000)
        detail = {"role": body.role, "expires_ms": token.expires_ms}
        audit.record(session, actor, "token.create", body.name, detail, now_ms)
    return CreatedToken(**_view(token).model_dump(), token=secret)


@router.delete("/tokens/{name}", summary="Revoke an API token", status_code=204, responses=responses(NotFound))
def revoke_token(use: Use, name: str, actor: Annotated[Actor, Depends(require("admin"))]) -> None:
    """At once: its console sessions end too. Revoking twice is harmless."""
    now_ms = use.clock()
    with use.database.session() as session:
        if tokens.revoke(session, name, now_ms):
            audit.record(session, actor, "token.revoke", name, {}, now_ms)


@router.post("/login-codes", summary="Make a one-time code for the console", status_code=201)
def make_login_code(request: Request, use: Use, actor: Annotated[Actor, Depends(require("viewer"))]) -> LoginCodeView:
    identity: Identity = request.state.identity  # `require` has left it there
    now_ms = use.clock()
    with use.database.session() as session:
        made = create_login_code(session, identity.token_id, now_ms, use.settings.login_code_s)
        audit.record(session, actor, "login-code.create", actor.name, {"expires_ms": made.expires_ms}, now_ms)
    return LoginCodeView(code=made.code, expires_ms=made.expires_ms)


def _view(token: ApiToken) -> TokenView:
    return TokenView(
        name=token.name,
        role=token.role,
        created_ms=token.created_ms,
        expires_ms=token.expires_ms,
        last_used_ms=token.last_used_ms,
        revoked_ms=token.revoked_ms,
    )
