"""The pages of groups: the list, one group, and the form that makes and changes them."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Form, Request, Response
from starlette.responses import RedirectResponse

from covey_server.api import groups as api
from covey_server.api.security import require
from covey_server.audit import Actor
from covey_server.console import group_view, html
from covey_server.console.group_view import Draft
from covey_server.console.html import ConsoleRoute
from covey_server.console.live_pages import Viewer
from covey_server.console.sentences import sentence
from covey_server.errors import Invalid, ServerError
from covey_server.fleet import groups as fleet_groups
from covey_server.services import Use

router = APIRouter(route_class=ConsoleRoute)

Operator = Annotated[Actor, Depends(require("operator"))]
Texts = Annotated[list[str] | None, Form(max_length=group_view.MAX_ROWS)]
_MAX_LIST = 1_000_000  # characters of a list of devices


@router.get("/groups")
def groups(request: Request, use: Use, _: Viewer, after: str = "") -> Response:
    with use.database.reading() as session:
        page = group_view.listed(session, after[:64])
    return html.page(request, "groups.html", now=use.clock(), page=page, filters={"after": after[:64]} if after else {})


@router.get("/groups/{name}")
def group(request: Request, use: Use, name: str, _: Viewer, after: str = "") -> Response:
    with use.database.reading() as session:
        shown = group_view.group(session, name, after[:64])
    filters = {"after": after[:64]} if after else {}
    return html.page(request, "group.html", now=use.clock(), group=shown, page=shown.page, filters=filters)


@router.get("/groups/{name}/count")
def count(request: Request, use: Use, name: str, _: Viewer) -> Response:
    """How many devices a selector finds: what a row of the list asks for when it is looked at."""
    with use.database.reading() as session:
        found = group_view.count(session, name)
    return html.page(request, "group_count.html", count=found)


@router.post("/new-group/preview")
def preview(request: Request, use: Use, _: Operator, key: Texts = None, values: Texts = None) -> Response:
    problem, found = "", None
    try:
        selector = group_view.read_selector(key or [], values or [])
        if selector:
            with use.database.reading() as session:
                found = group_view.preview(session, selector)
    except ServerError as error:
        problem = sentence(error.detail)
    return html.page(request, "group_preview.html", preview=found, problem=problem)


@router.get("/new-group")
def new(request: Request, use: Use, _: Operator, name: str = "") -> Response:
    """The form; with `?name=` that of a group that is there."""
    with use.database.reading() as session:
        draft = (
            group_view.draft(session, name[:64])
            if name
            else Draft("", True, "", True, group_view.selector_rows({}), "", 0)
        )
        keys = group_view.keys(session)
    return html.page(request, "edit_group.html", now=use.clock(), draft=draft, keys=keys, problem="")


@router.post("/new-group")
def save(
    request: Request,
    use: Use,
    actor: Operator,
    name: Annotated[str, Form(max_length=64)] = "",
    kind: Annotated[str, Form(max_length=16)] = "fixed",
    description: Annotated[str, Form(max_length=4000)] = "",
    devices: Annotated[str, Form(max_length=_MAX_LIST)] = "",
    new: Annotated[bool, Form()] = False,
    key: Texts = None,
    values: Texts = None,
) -> Response:
    """Make or change it. What is wrong is said above the form, which keeps what was written."""
    name, fixed = name.strip(), kind != "selector"
    try:
        body = _body(fixed, description, devices, key or [], values or [])
        with use.database.reading() as session:
            if new and name in fleet_groups.names(session):
                raise Invalid(f"there is a group {name} already", field="name")
        api.put_group(use, name, body, Response(), actor)
    except ServerError as error:
        rows = [*zip(key or [], values or [], strict=False)] or group_view.selector_rows({})
        draft = Draft(name, new, description, fixed, rows, devices, 0)
        with use.database.reading() as session:
            keys = group_view.keys(session)
        return html.page(
            request,
            "edit_group.html",
            status=error.status,
            now=use.clock(),
            draft=draft,
            keys=keys,
            problem=sentence(error.detail),
        )
    return RedirectResponse(f"/groups/{quote(name)}", 303)


@router.post("/groups/{name}/delete")
def delete(use: Use, name: str, actor: Operator) -> Response:
    api.delete_group(use, name, actor)
    return Response(status_code=204, headers={"HX-Redirect": "/groups"})


def _body(fixed: bool, description: str, devices: str, keys: list[str], values: list[str]) -> api.GroupBody:
    chosen: dict[str, Any] = (
        {"devices": devices.replace(",", " ").split()}
        if fixed
        else {"selector": group_view.read_selector(keys, values)}
    )
    if not fixed and not chosen["selector"]:
        raise Invalid("a selector needs at least one condition", field="selector")
    return api.GroupBody(description=description.strip(), **chosen)
