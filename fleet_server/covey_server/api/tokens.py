"""API tokens, who one is, and one-time codes for the console."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field
from sqlalchemy import select

from covey_server import audit, tokens
from covey_server.api.paging import Page
from covey_server.api.security import Identity, identify, require
from covey_server.audit import Actor
from covey_server.db.tables import ApiToken, Person
from covey_server.errors import Conflict, Forbidden, Invalid, NotFound, Unauthorized
from covey_server.people import directory
from covey_server.people.roles import ROLES, Role
from covey_server.people.sessions import create_login_code
from covey_server.problems import responses
from covey_server.services import Use

router = APIRouter(prefix="/api/v1", tags=["people"], responses=responses(Unauthorized, Forbidden))

ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class WhoAmI(BaseModel):
    name: str
    role: str = Field(description=f"one of {', '.join(ROLES)}")


class NewToken(BaseModel):
    name: str = Field(pattern=directory.NAME_PATTERN, examples=["ci-pipeline"])
    role: Role
    ttl_s: int | None = Field(default=None, ge=60, le=3650 * 86_400, description="default: the setting token_s")
    owner: str | None = Field(
        default=None,
        max_length=64,
        description="the person whose token it is; by default oneself, with the role admin nobody: a pipeline's",
    )
    models: list[ModelName] | None = Field(
        default=None,
        min_length=1,
        max_length=tokens.MAX_MODELS,
        description="the only models that it may push and roll out; it changes nothing else then. Default: no such limit",
    )


class TokenView(BaseModel):
    name: str
    role: str
    owner: str | None = Field(description="the person whose token it is; null: a pipeline's")
    models: list[str] | None
    by_login: bool = Field(description="made by a login of its owner's")
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


def _is_admin(identity: Identity) -> bool:
    return identity.actor.role == "admin" and identity.actor.models is None


def identity_of(request: Request) -> Identity:
    """Whom `require` has found."""
    found = request.state.identity
    if not isinstance(found, Identity):
        raise TypeError("the request has no identity yet")
    return found


@router.get("/whoami", summary="Whose token this is")
def whoami(actor: Annotated[Actor, Depends(_any_role)]) -> WhoAmI:
    return WhoAmI(name=actor.name, role=actor.role)


@router.get("/tokens", summary="List the API tokens")
def list_tokens(use: Use, request: Request, _: Annotated[Actor, Depends(require("viewer"))]) -> Page[TokenView]:
    """With the role admin all, else one's own."""
    identity = identity_of(request)
    query = select(ApiToken, Person.name).outerjoin(Person, Person.id == ApiToken.person_id).order_by(ApiToken.name)
    if not _is_admin(identity):
        query = query.where(ApiToken.person_id == identity.person_id, ApiToken.person_id.is_not(None))
    with use.database.reading() as session:
        return Page(items=[view(token, owner) for token, owner in session.execute(query.limit(1000))])


@router.post(
    "/tokens", summary="Create an API token", status_code=201, responses=responses(Conflict, Invalid, NotFound)
)
def create_token(
    use: Use, request: Request, body: NewToken, actor: Annotated[Actor, Depends(require("viewer"))]
) -> CreatedToken:
    """The role admin may make any; whoever has logged in by name and password may make tokens of their own, whose role is not
    above theirs."""
    identity = identity_of(request)
    if not _is_admin(identity) and (not identity.in_person or body.owner not in (None, actor.name)):
        raise Forbidden("this needs the role admin; for tokens of your own, log in by name and password")
    now_ms = use.clock()
    seconds = body.ttl_s or use.settings.token_s
    whose = body.owner if _is_admin(identity) else actor.name
    with use.database.session() as session:
        owner = None if whose is None else directory.find(session, whose)
        token, secret = tokens.create(
            session, body.name, body.role, now_ms, now_ms + seconds * 1000, owner=owner, models=body.models
        )
        detail = {"role": body.role, "expires_ms": token.expires_ms, "owner": whose, "models": token.models}
        audit.record(session, actor, "token.create", body.name, detail, now_ms)
    return CreatedToken(**view(token, whose).model_dump(), token=secret)


@router.delete("/tokens/{name}", summary="Revoke an API token", status_code=204, responses=responses(NotFound))
def revoke_token(use: Use, request: Request, name: str, actor: Annotated[Actor, Depends(require("viewer"))]) -> None:
    """At once: its console sessions end too. Revoking twice is harmless. Whoever is not admin may revoke their own."""
    identity, now_ms = identity_of(request), use.clock()
    with use.database.session() as session:
        if not _is_admin(identity):
            token = session.scalar(select(ApiToken).where(ApiToken.name == name))
            if token is None or token.person_id is None or token.person_id != identity.person_id:
                raise Forbidden("this needs the role admin, or a token of your own")
        if tokens.revoke(session, name, now_ms):
            audit.record(session, actor, "token.revoke", name, {}, now_ms)


@router.post("/login-codes", summary="Make a one-time code for the console", status_code=201)
def make_login_code(request: Request, use: Use, actor: Annotated[Actor, Depends(require("viewer"))]) -> LoginCodeView:
    now_ms = use.clock()
    with use.database.session() as session:
        made = create_login_code(session, identity_of(request).holder, now_ms, use.settings.login_code_s)
        audit.record(session, actor, "login-code.create", actor.name, {"expires_ms": made.expires_ms}, now_ms)
    return LoginCodeView(code=made.code, expires_ms=made.expires_ms)


def view(token: ApiToken, owner: str | None) -> TokenView:
    return TokenView(
        name=token.name,
        role=token.role,
        owner=owner,
        models=token.models,
        by_login=token.by_login,
        created_ms=token.created_ms,
        expires_ms=token.expires_ms,
        last_used_ms=token.last_used_ms,
        revoked_ms=token.revoked_ms,
    )
