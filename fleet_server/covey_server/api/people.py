"""People: added by an administrator, invited to choose a password, logged in by it, disabled; and what each may do for
themselves."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel, Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from covey_server import audit, tokens
from covey_server.api.paging import AfterName, Limit, Page
from covey_server.api.security import address_of, require
from covey_server.api.tokens import CreatedToken, identity_of, view
from covey_server.audit import Actor
from covey_server.db.tables import ConsoleSession, Person
from covey_server.errors import Conflict, Forbidden, Invalid, NotFound, TooMany, Unauthorized
from covey_server.notifications.events import EMAIL_PATTERN, EventName
from covey_server.people import directory, passwords, sessions
from covey_server.people.roles import PersonRole, Role, common
from covey_server.problems import responses
from covey_server.services import Use

router = APIRouter(prefix="/api/v1", tags=["people"])
_ANSWERS = responses(Unauthorized, Forbidden)

Admin = Annotated[Actor, Depends(require("admin"))]
Viewer = Annotated[Actor, Depends(require("viewer"))]
Name = Annotated[str, Path(pattern=directory.NAME_PATTERN)]
Password = Annotated[str, Field(max_length=passwords.MAX_LENGTH, examples=["a sentence that nobody guesses"])]
Email = Annotated[str, Field(pattern=EMAIL_PATTERN, max_length=254, examples=["anna@factory.example"])]
_NOTIFY = "events that are mailed to them"


class NewPerson(BaseModel):
    name: str = Field(pattern=directory.NAME_PATTERN, examples=["anna"])
    role: PersonRole
    email: Email | None = None
    notify: list[EventName] = Field(default_factory=list, max_length=32, description=_NOTIFY)


class PersonChange(BaseModel):
    """What is not given stays as it is."""

    role: PersonRole | None = None
    disabled: bool | None = None
    email: Email | None = Field(default=None, description="null takes it away")
    notify: list[EventName] | None = Field(default=None, max_length=32, description=_NOTIFY)


class OwnChange(BaseModel):
    email: Email | None = Field(default=None, description="null takes it away")
    notify: list[EventName] | None = Field(default=None, max_length=32, description=_NOTIFY)


class PersonView(BaseModel):
    name: str
    role: str
    email: str | None
    notify: list[str]
    has_password: bool
    created_ms: int
    created_by: str
    last_login_ms: int | None
    disabled_ms: int | None


class Invitation(BaseModel):
    code: str = Field(description="they open /invitation?code=CODE in a browser and choose a password; it works once")
    expires_ms: int


class CreatedPerson(PersonView):
    invitation: Invitation


class Login(BaseModel):
    name: str = Field(max_length=64)
    password: Password
    role: Role | None = Field(default=None, description="a lesser role for the token; default: all that the person may")
    ttl_s: int | None = Field(default=None, ge=60, le=90 * 86_400, description="default: the setting session_s")


class NewPassword(BaseModel):
    current: Password
    new: Password


class MyPage(BaseModel):
    name: str
    role: str
    person: PersonView | None = Field(description="null: this is a pipeline's token")
    sessions: int = Field(description="browsers in which they are logged in")


class LoggedOut(BaseModel):
    sessions: int
    tokens: int = Field(description="tokens that logins had made")


# --- of oneself ------------------------------------------------------------------------------------------------------


@router.post(
    "/login",
    summary="Log in by name and password",
    status_code=201,
    responses=responses(Unauthorized, TooMany, Conflict),
)
def log_in(use: Use, request: Request, body: Login) -> CreatedToken:
    """For the command line: an API token of this person. After a few wrong passwords each further try has to wait longer."""
    address, now_ms = address_of(request), use.clock()
    person = directory.authenticate(use.database, body.name, body.password, address, now_ms)
    role = person.role if body.role is None else body.role
    if common(role, person.role) != role:
        raise Conflict(f"{person.name} has the role {person.role}, which may not do what {role} may", code="role")
    with use.database.session() as session:
        seconds = body.ttl_s or use.settings.session_s
        token, secret = tokens.create_by_login(session, directory.find(session, person.name), role, now_ms, seconds)
        actor = Actor(person.name, role, f"api {address}")
        audit.record(session, actor, "login", person.name, {"token": token.name}, now_ms)
    return CreatedToken(**view(token, person.name).model_dump(), token=secret)


@router.get("/me", summary="Oneself", responses=_ANSWERS)
def show_me(use: Use, request: Request, actor: Viewer) -> MyPage:
    identity = identity_of(request)
    with use.database.reading() as session:
        person = None if identity.person_id is None else session.get_one(Person, identity.person_id)
        owned = (
            ConsoleSession.person_id == identity.person_id
            if identity.person_id is not None
            else ConsoleSession.token_id == identity.holder.token_id
        )
        living = [owned, ConsoleSession.kind == "session", ConsoleSession.expires_ms > use.clock()]
        count = session.scalar(select(func.count()).select_from(ConsoleSession).where(*living)) or 0
    return MyPage(name=actor.name, role=actor.role, person=None if person is None else _view(person), sessions=count)


@router.patch("/me", summary="Change what one is told", responses={**_ANSWERS, **responses(NotFound)})
def change_me(use: Use, request: Request, body: OwnChange, actor: Viewer) -> PersonView:
    with use.database.session() as session:
        person = _myself(session, request)
        changed = _apply(person, body)
        if changed:
            audit.record(session, actor, "person.change", person.name, changed, use.clock())
    return _view(person)


@router.post(
    "/me/password",
    summary="Choose another password",
    status_code=204,
    responses={**_ANSWERS, **responses(NotFound, Invalid, TooMany)},
)
def change_password(use: Use, request: Request, body: NewPassword, actor: Viewer) -> None:
    """One's other sessions end."""
    with use.database.reading() as session:
        name = _myself(session, request).name
    now_ms = use.clock()
    try:
        directory.authenticate(use.database, name, body.current, address_of(request), now_ms)
    except Unauthorized as error:
        raise Forbidden("the current password is another", code="wrong_password") from error
    kept = directory.new_password(name, body.new)
    with use.database.session() as session:
        person = directory.find(session, name, lock=True)
        directory.set_password(session, person, kept, now_ms, but=identity_of(request).session)
        audit.record(session, actor, "person.password", name, {}, now_ms)


@router.post(
    "/me/logout-everywhere", summary="End all of one's sessions", responses={**_ANSWERS, **responses(NotFound)}
)
def log_out_everywhere(use: Use, request: Request, actor: Viewer) -> LoggedOut:
    """In every browser, this one too, and the tokens that logins by the command line made. Other tokens stay."""
    now_ms = use.clock()
    with use.database.session() as session:
        ended, revoked = directory.log_out_everywhere(session, _myself(session, request), now_ms)
        audit.record(session, actor, "logout.everywhere", actor.name, {"sessions": ended, "tokens": revoked}, now_ms)
    return LoggedOut(sessions=ended, tokens=revoked)


# --- for administrators ----------------------------------------------------------------------------------------------


@router.get("/people", summary="List the people", responses=_ANSWERS)
def list_people(use: Use, _: Admin, limit: Limit = 100, after: AfterName = "") -> Page[PersonView]:
    with use.database.reading() as session:
        found = directory.page(session, after, limit + 1)
    return Page(items=[_view(one) for one in found[:limit]], next=found[limit - 1].name if len(found) > limit else None)


@router.post("/people", summary="Add a person", status_code=201, responses={**_ANSWERS, **responses(Conflict)})
def add_person(use: Use, body: NewPerson, actor: Admin) -> CreatedPerson:
    """They choose a password by the invitation, so that nobody else ever knows it."""
    now_ms = use.clock()
    with use.database.session() as session:
        person = directory.add(session, body.name, body.role, actor.name, now_ms)
        person.email, person.notify = body.email, _once(body.notify)
        made = sessions.invite(session, person.id, now_ms, use.settings.invitation_s)
        audit.record(session, actor, "person.add", person.name, {"role": body.role}, now_ms)
    return CreatedPerson(**_view(person).model_dump(), invitation=_invitation(made))


@router.get("/people/{name}", summary="Show a person", responses={**_ANSWERS, **responses(NotFound)})
def show_person(use: Use, name: Name, _: Admin) -> PersonView:
    with use.database.reading() as session:
        return _view(directory.find(session, name))


@router.patch("/people/{name}", summary="Change a person", responses={**_ANSWERS, **responses(NotFound, Conflict)})
def change_person(use: Use, request: Request, name: Name, body: PersonChange, actor: Admin) -> PersonView:
    """A role counts from the next request on, for their tokens too. Whoever is disabled is logged out at once. One's own role
    is for somebody else to change."""
    now_ms = use.clock()
    with use.database.session() as session:
        person = directory.find(session, name, lock=True)
        if person.id == identity_of(request).person_id and (body.role is not None or body.disabled):
            raise Conflict("somebody else has to change your role or disable you", code="oneself")
        changed = _apply(person, body)
        if body.role is not None and body.role != person.role:
            changed["role"] = person.role = body.role
        if body.disabled is not None and body.disabled != (person.disabled_ms is not None):
            changed["disabled"] = body.disabled
            if body.disabled:
                directory.disable(session, person, now_ms)
            else:
                person.disabled_ms = None
        if changed:
            audit.record(session, actor, "person.change", person.name, changed, now_ms)
    return _view(person)


@router.post(
    "/people/{name}/invitation",
    summary="Invite a person to choose a password",
    status_code=201,
    responses={**_ANSWERS, **responses(NotFound, Conflict)},
)
def invite(use: Use, name: Name, actor: Admin) -> Invitation:
    """Also for a password that was forgotten: the old one stays good until another is chosen. An earlier invitation ends."""
    now_ms = use.clock()
    with use.database.session() as session:
        person = directory.find(session, name, lock=True)
        if person.disabled_ms is not None:
            raise Conflict(f"{name} is disabled", code="disabled")
        made = sessions.invite(session, person.id, now_ms, use.settings.invitation_s)
        audit.record(session, actor, "person.invite", name, {"expires_ms": made.expires_ms}, now_ms)
    return _invitation(made)


@router.post(
    "/people/{name}/logout-everywhere",
    summary="End all sessions of a person",
    responses={**_ANSWERS, **responses(NotFound)},
)
def log_person_out(use: Use, name: Name, actor: Admin) -> LoggedOut:
    now_ms = use.clock()
    with use.database.session() as session:
        ended, revoked = directory.log_out_everywhere(session, directory.find(session, name), now_ms)
        audit.record(session, actor, "logout.everywhere", name, {"sessions": ended, "tokens": revoked}, now_ms)
    return LoggedOut(sessions=ended, tokens=revoked)


# --- inside ----------------------------------------------------------------------------------------------------------


def _myself(session: Session, request: Request) -> Person:
    person_id = identity_of(request).person_id
    if person_id is None:
        raise NotFound("this is a pipeline's token; it has no person", code="no_person")
    return session.get_one(Person, person_id)


def _apply(person: Person, body: PersonChange | OwnChange) -> dict[str, object]:
    """Take over how they are told of events; what changed, for the audit log."""
    changed: dict[str, object] = {}
    if "email" in body.model_fields_set and body.email != person.email:
        changed["email"] = person.email = body.email
    if body.notify is not None and (wanted := _once(body.notify)) != person.notify:
        changed["notify"] = person.notify = wanted
    return changed


def _once(names: list[EventName]) -> list[str]:
    return sorted(set(names))


def _invitation(made: sessions.LoginCode) -> Invitation:
    return Invitation(code=made.code, expires_ms=made.expires_ms)


def _view(person: Person) -> PersonView:
    return PersonView(
        name=person.name,
        role=person.role,
        email=person.email,
        notify=list(person.notify),
        has_password=person.password is not None,
        created_ms=person.created_ms,
        created_by=person.created_by,
        last_login_ms=person.last_login_ms,
        disabled_ms=person.disabled_ms,
    )
