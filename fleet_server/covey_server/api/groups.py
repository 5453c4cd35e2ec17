"""Groups of devices: fixed lists and selectors."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field

from covey_server import audit
from covey_server.api.paging import AfterName, Limit, Page
from covey_server.api.security import require
from covey_server.audit import Actor
from covey_server.db.tables import Device
from covey_server.errors import Conflict, Forbidden, Invalid, NotFound, Unauthorized
from covey_server.fleet import groups
from covey_server.fleet.views import GroupDetail, GroupView
from covey_server.problems import responses
from covey_server.services import Use

router = APIRouter(prefix="/api/v1", tags=["groups"], responses=responses(Unauthorized, Forbidden))

_SHOWN = 1000


class GroupBody(BaseModel):
    """Either `devices` or `selector`."""

    model_config = ConfigDict(extra="forbid")

    description: str = Field(default="", max_length=4000)
    devices: list[str] | None = Field(default=None, max_length=groups.MAX_MEMBERS)
    selector: dict[str, Any] | None = Field(
        default=None,
        description="all keys must match: profile, simulated, labels.NAME, facts.PATH; a value or a list of values",
        examples=[{"labels.line": "a", "facts.architecture": ["aarch64", "armv7l"]}],
    )


@router.get("/groups", summary="List the groups")
def list_groups(
    use: Use, _: Annotated[Actor, Depends(require("viewer"))], limit: Limit = 100, after: AfterName = ""
) -> Page[GroupView]:
    with use.database.reading() as session:
        found = sorted(name for name in groups.names(session) if name > after)
        items = [GroupView(**groups.describe(session, name)) for name in found[:limit]]
    return Page(items=items, next=found[limit - 1] if len(found) > limit else None)


@router.get("/groups/{name}", summary="Show a group and its devices", responses=responses(NotFound))
def show_group(use: Use, name: str, _: Annotated[Actor, Depends(require("viewer"))]) -> GroupDetail:
    with use.database.reading() as session:
        members = groups.members_query(session, name).order_by(Device.id).limit(_SHOWN)
        return GroupDetail(**groups.describe(session, name), devices=list(session.scalars(members)))


@router.put(
    "/groups/{name}",
    summary="Make or replace a group",
    responses={201: {"description": "it is new", "model": GroupView}, **responses(Invalid, Conflict)},
)
def put_group(
    use: Use, name: str, body: GroupBody, response: Response, actor: Annotated[Actor, Depends(require("operator"))]
) -> GroupView:
    now_ms = use.clock()
    with use.database.session() as session:
        new = groups.put_group(
            session,
            name,
            description=body.description,
            devices=body.devices,
            selector=body.selector,
            now_ms=now_ms,
        )
        detail = {"selector": body.selector, "devices": None if body.devices is None else len(set(body.devices))}
        audit.record(session, actor, "group.put", name, detail, now_ms)
        view = GroupView(**groups.describe(session, name))
    use.bus.publish("device")
    if new:
        response.status_code = 201
    return view


@router.delete("/groups/{name}", summary="Delete a group", status_code=204, responses=responses(NotFound, Conflict))
def delete_group(use: Use, name: str, actor: Annotated[Actor, Depends(require("operator"))]) -> None:
    with use.database.session() as session:
        groups.delete_group(session, name)
        audit.record(session, actor, "group.delete", name, {}, use.clock())
    use.bus.publish("device")
