"""Settings: oneself, people and their roles, API tokens, signing keys (webhooks have a module of their own). What changes anything goes through the API's own
functions, so that both obey the same rules and write the same audit log."""

from __future__ import annotations

from typing import Annotated

import pydantic
from fastapi import APIRouter, Depends, Form, Request, Response
from starlette.responses import RedirectResponse

from covey_contract.signing import key_id
from covey_server.api import people as people_api
from covey_server.api import tokens as tokens_api
from covey_server.api.security import require
from covey_server.audit import Actor
from covey_server.console import html
from covey_server.console.html import ConsoleRoute
from covey_server.console.i18n import gettext as _
from covey_server.console.live_pages import Viewer
from covey_server.errors import Invalid
from covey_server.notifications.events import EVENTS
from covey_server.people import passwords
from covey_server.people.roles import PERSON_ROLES, ROLES, Role
from covey_server.services import Use

router = APIRouter(route_class=ConsoleRoute, prefix="/settings")

Admin = Annotated[Actor, Depends(require("admin"))]
Name = Annotated[str, Form(max_length=64)]
Password = Annotated[str, Form(max_length=passwords.MAX_LENGTH)]
PAGE = 100
_DAY_S = 86_400


@router.get("")
def oneself(request: Request, use: Use, actor: Viewer) -> Response:
    return html.page(
        request,
        "settings.html",
        now=use.clock(),
        me=people_api.show_me(use, request, actor),
        events=EVENTS,
        mail=bool(use.settings.smtp_host),
        shortest=passwords.MIN_LENGTH,
    )


@router.post("/password")
def password(
    request: Request, use: Use, actor: Viewer, current: Password = "", new: Password = "", again: Password = ""
) -> Response:
    if new != again:
        raise Invalid(_("The two passwords are not the same."))
    people_api.change_password(use, request, people_api.NewPassword(current=current, new=new), actor)
    return _done(request, _("The password is changed. Your other sessions have ended."))


@router.post("/notify")
def notify(
    request: Request,
    use: Use,
    actor: Viewer,
    email: Annotated[str, Form(max_length=254)] = "",
    events: Annotated[list[str] | None, Form(max_length=len(EVENTS))] = None,
) -> Response:
    """What one is told of by e-mail, and where."""
    try:
        body = people_api.OwnChange.model_validate({"email": email.strip() or None, "notify": events or []})
    except pydantic.ValidationError as error:
        raise Invalid(_("this is no e-mail address"), field="email") from error
    people_api.change_me(use, request, body, actor)
    return _done(request, _("Kept."))


@router.post("/logout-everywhere")
def logout_everywhere(request: Request, use: Use, actor: Viewer) -> Response:
    people_api.log_out_everywhere(use, request, actor)
    return Response(status_code=204, headers={"HX-Redirect": "/login"})


# --- people ------------------------------------------------------------------------------------------------------------


@router.get("/people")
def people(request: Request, use: Use, actor: Admin, after: str = "") -> Response:
    found = people_api.list_people(use, actor, PAGE, after[:64])
    filters = {"after": after[:64]} if after else {}
    return html.page(
        request, "settings_people.html", now=use.clock(), people=found, roles=PERSON_ROLES, filters=filters
    )


@router.post("/people")
def add_person(request: Request, use: Use, actor: Admin, name: Name = "", role: Name = "viewer") -> Response:
    """Their invitation is shown, once: nobody but they themselves ever knows their password."""
    try:
        body = people_api.NewPerson.model_validate({"name": name.strip(), "role": role})
    except pydantic.ValidationError as error:
        raise Invalid(_("a name has 1 to 64 of A-Z a-z 0-9 . _ @ -"), field="name") from error
    made = people_api.add_person(use, body, actor)
    return _invited(request, use, made.name, made.invitation)


@router.post("/people/{name}/invitation")
def invite(request: Request, use: Use, actor: Admin, name: str) -> Response:
    return _invited(request, use, name, people_api.invite(use, name, actor))


@router.post("/people/{name}/change")
def change_person(
    request: Request, use: Use, actor: Admin, name: str, role: Name = "", disabled: Name = ""
) -> Response:
    """One thing at a time: a role, or whether they are disabled."""
    given: dict[str, object] = {}
    if role:
        given["role"] = role
    if disabled in ("yes", "no"):
        given["disabled"] = disabled == "yes"
    try:
        body = people_api.PersonChange.model_validate(given)
    except pydantic.ValidationError as error:
        raise Invalid(_("there is no such role"), field="role") from error
    people_api.change_person(use, request, name, body, actor)
    return RedirectResponse("/settings/people", 303)


@router.post("/people/{name}/logout-everywhere")
def log_person_out(request: Request, use: Use, actor: Admin, name: str) -> Response:
    people_api.log_person_out(use, name, actor)
    return _done(request, _("%(name)s is logged out everywhere.") % {"name": name})


# --- tokens and keys ---------------------------------------------------------------------------------------------------


@router.get("/tokens")
def tokens(request: Request, use: Use, actor: Viewer) -> Response:
    found = tokens_api.list_tokens(use, request, actor).items
    now_ms = use.clock()
    living = [one for one in found if one.revoked_ms is None and (one.expires_ms is None or one.expires_ms > now_ms)]
    ended = [one for one in found if one not in living]
    return html.page(request, "settings_tokens.html", now=now_ms, living=living, ended=ended, roles=ROLES)


@router.post("/tokens")
def add_token(
    request: Request,
    use: Use,
    actor: Viewer,
    name: Name = "",
    role: Name = "viewer",
    days: Annotated[int, Form(ge=1, le=3650)] = 90,
    models: Annotated[str, Form(max_length=4000)] = "",
) -> Response:
    """The secret is shown, once."""
    chosen: Role | None = next((one for one in ROLES if one == role), None)
    if chosen is None:
        raise Invalid(_("there is no such role"), field="role")
    try:
        body = tokens_api.NewToken(
            name=name.strip(), role=chosen, ttl_s=days * _DAY_S, models=models.replace(",", " ").split() or None
        )
    except pydantic.ValidationError as error:
        raise Invalid(_("a name has 1 to 64 of A-Z a-z 0-9 . _ @ -"), field="name") from error
    made = tokens_api.create_token(use, request, body, actor)
    return html.page(request, "settings_token.html", name=made.name, secret=made.token, expires_ms=made.expires_ms)


@router.post("/tokens/{name}/revoke")
def revoke_token(request: Request, use: Use, actor: Viewer, name: str) -> Response:
    tokens_api.revoke_token(use, request, name, actor)
    return Response(status_code=204, headers={"HX-Redirect": "/settings/tokens"})


@router.get("/keys")
def keys(request: Request, use: Use, _actor: Viewer) -> Response:
    """How the roles of the releases stand, and whose orders devices follow."""
    rows = use.releases.status() if use.releases is not None else []
    director = [key_id(one) for one in use.keys.trust.director]
    return html.page(request, "settings_keys.html", now=use.clock(), rows=rows, director=director)


def _invited(request: Request, use: Use, name: str, made: people_api.Invitation) -> Response:
    address = f"{str(request.base_url).rstrip('/')}/invitation?code={made.code}"
    return html.page(
        request, "settings_invitation.html", now=use.clock(), name=name, address=address, expires_ms=made.expires_ms
    )


def _done(request: Request, text: str) -> Response:
    return html.page(request, "settings_done.html", text=text)
