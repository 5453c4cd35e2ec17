"""Campaigns over the API: plan (moves nothing), create, look, and tell them what to do."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from covey_server.api.paging import AfterId, AfterName, Limit, Page
from covey_server.api.security import require
from covey_server.audit import Actor
from covey_server.campaigns import commands, device_views, plan_views, views
from covey_server.campaigns.planning import prepare
from covey_server.core.document import MAX_BYTES, Document, DocumentError
from covey_server.core.engine import Action, DeviceState
from covey_server.core.spec import CampaignSpec, read_spec, schema_hook
from covey_server.errors import Conflict, Forbidden, Invalid, NotFound, TooLarge, Unauthorized
from covey_server.problems import responses
from covey_server.services import Services, Use

router = APIRouter(prefix="/api/v1", tags=["campaigns"], responses=responses(Unauthorized, Forbidden))

Viewer = Annotated[Actor, Depends(require("viewer"))]
Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Operator = Annotated[Actor, Depends(require("operator", checks_model=True))]
Approver = Annotated[Actor, Depends(require("approver", checks_model=True))]
StageName = Annotated[
    str | None,
    Query(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="one stage of it, where that can be said"),
]
# What operators say; approval is not theirs.
_Said = Literal["start", "pause", "resume", "abort", "rollback", "skip-soak", "retry", "close"]
_SEED_BITS = 48
T = TypeVar("T")


@dataclass(frozen=True)
class _File:
    """A campaign file as it came."""

    text: str
    spec: CampaignSpec
    document: Document


async def _campaign_file(request: Request) -> _File:
    """The body, bounded, as YAML unless its Content-Type says JSON."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            raise TooLarge(f"a campaign file has at most {MAX_BYTES} bytes")
    is_json = "json" in request.headers.get("content-type", "").lower()
    try:
        spec, document = read_spec(bytes(body), is_json=is_json)
    except DocumentError as error:
        raise _invalid(error) from error
    return _File(bytes(body).decode(), spec, document)


CampaignFile = Annotated[_File, Depends(_campaign_file)]


def _invalid(error: DocumentError) -> Invalid:
    return Invalid(str(error), field=error.field or None, code="bad_campaign_file", line=error.line)


def _body_in_openapi() -> dict[str, Any]:
    """The grammar of the campaign file, for the OpenAPI document."""
    (reference,), definitions = msgspec.json.schema_components(
        [CampaignSpec], schema_hook=schema_hook, ref_template="#/x-unused/{name}"
    )
    schema = _inlined(reference, definitions)
    content = {kind: {"schema": schema} for kind in ("application/yaml", "application/json")}
    return {"requestBody": {"required": True, "content": content}}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """References replaced by what they refer to (the grammar does not recur)."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items()}


_OPENAPI = _body_in_openapi()


@router.post(
    "/campaigns/plan",
    summary="See what a campaign would do",
    responses=responses(Invalid, TooLarge),
    openapi_extra=_OPENAPI,
)
def plan(_: Operator, file: CampaignFile, use: Use, limit: Limit = 100, after: AfterName = "") -> plan_views.PlanView:
    """What this campaign would do: which device gets which build in which stage, why, and who is left out. Moves nothing.

    Stages and choices are counted in full; each list of devices holds at most `limit` of them by id. For those that follow, ask
    again with `after`, and with the seed of the plan in the file, since without one each plan draws anew."""
    with use.database.reading() as session:
        try:
            prepared = prepare(session, file.spec, _seed(file.spec), file.document.error)
        except DocumentError as error:
            raise _invalid(error) from error
        return plan_views.plan_view(session, file.spec, prepared, limit, after)


@router.post(
    "/campaigns",
    summary="Make a campaign",
    status_code=201,
    responses=responses(Invalid, Conflict, TooLarge),
    openapi_extra=_OPENAPI,
)
def create(
    actor: Operator,
    file: CampaignFile,
    use: Use,
    response: Response,
    start: Annotated[bool, Query(description="start it at once")] = False,
) -> views.CampaignView:
    """Make a campaign; with `start=true` also start it, at once or not at all."""
    name, ordered = file.spec.name, False
    with use.database.session() as session:
        now_ms = use.clock()
        try:
            commands.create(session, file.spec, file.text, _seed(file.spec), file.document.error, actor, now_ms)
        except DocumentError as error:
            raise _invalid(error) from error
        if start:
            ordered = commands.act(session, name, Action.START, actor, now_ms)
        session.flush()
        view = views.show(session, name, now_ms)
    _announce(use, name, ordered)
    response.headers["Location"] = f"/api/v1/campaigns/{name}"
    return view


@router.get("/campaigns", summary="List campaigns")
def list_campaigns(_: Viewer, use: Use, limit: Limit = 100, after: AfterId = 0) -> Page[views.CampaignSummary]:
    """The newest first."""
    with use.database.reading() as session:
        return _page(*views.list_campaigns(session, limit, after))


@router.get("/campaigns/{name}", summary="Show a campaign", responses=responses(NotFound))
def show(_: Viewer, name: Name, use: Use) -> views.CampaignView:
    """State, stages with their counts, gates with their evidence, and why it does not move on."""
    with use.database.reading() as session:
        return views.show(session, name, use.clock())


@router.get("/campaigns/{name}/devices", summary="A campaign's devices", responses=responses(NotFound))
def list_devices(
    _: Viewer,
    name: Name,
    use: Use,
    limit: Limit = 200,
    after: AfterName = "",
    state: DeviceState | None = None,
    stage: StageName = None,
    drifted: Annotated[
        bool, Query(description="those alone that run something else than the campaign left them on")
    ] = False,
) -> Page[device_views.CampaignDeviceView]:
    """Every device of the target: its stage, build, what it goes back to, and how far it is."""
    with use.database.reading() as session:
        state_name = state.value if state else None
        return _page(*device_views.list_devices(session, name, limit, after, state_name, stage=stage, drifted=drifted))


@router.get("/campaigns/{name}/events", summary="A campaign's log of decisions", responses=responses(NotFound))
def list_events(_: Viewer, name: Name, use: Use, limit: Limit = 200, after: AfterId = 0) -> Page[views.EventView]:
    """The log of decisions, with the evidence for each, oldest first."""
    with use.database.reading() as session:
        return _page(*views.list_events(session, name, limit, after))


class CloneBody(BaseModel):
    """`version`: None takes the one that the file names."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    version: Annotated[str, Field(min_length=1, max_length=64)] | None = None


@router.post(
    "/campaigns/{name}/clone",
    summary="Make a campaign from another's file",
    status_code=201,
    responses=responses(NotFound, Invalid, Conflict),
)
def clone(actor: Operator, name: Name, body: CloneBody, use: Use, response: Response) -> views.CampaignView:
    """The same file under another name and, if given, for another version, planned anew for the devices that there are now."""
    with use.database.session() as session:
        now_ms = use.clock()
        try:
            commands.clone(session, name, body.name, body.version, secrets.randbits(_SEED_BITS), actor, now_ms)
        except DocumentError as error:
            raise _invalid(error) from error
        session.flush()
        view = views.show(session, body.name, now_ms)
    _announce(use, body.name, ordered=False)
    response.headers["Location"] = f"/api/v1/campaigns/{body.name}"
    return view


@router.post(
    "/campaigns/{name}/approve",
    summary="Approve a campaign or one of its stages",
    responses=responses(NotFound, Conflict, Invalid),
)
def approve(actor: Approver, name: Name, use: Use, stage: StageName = None) -> views.CampaignView:
    """Let a campaign start, or the stage that waits for it. Nobody approves a campaign that they made. What has been approved
    already is."""
    return _act(use, name, Action.APPROVE, actor, stage)


@router.post(
    "/campaigns/{name}/{action}",
    summary="Start, pause, resume, abort, roll back, skip a soak, try failed devices again, close",
    responses=responses(NotFound, Conflict, Invalid),
)
def act(actor: Operator, name: Name, action: _Said, use: Use, stage: StageName = None) -> views.CampaignView:
    """Tell it something; `rollback` and `retry` may be about one stage. What has been done already is done; 409 where its state
    does not allow it."""
    return _act(use, name, Action(action), actor, stage)


def _act(use: Services, name: str, action: Action, actor: Actor, stage: str | None) -> views.CampaignView:
    with use.database.session() as session:
        now_ms = use.clock()
        ordered = commands.act(session, name, action, actor, now_ms, stage)
        view = views.show(session, name, now_ms)
    _announce(use, name, ordered)
    return view


def _page(items: list[T], cursor: int | str | None) -> Page[T]:
    return Page(items=items, next=None if cursor is None else str(cursor))


def _seed(spec: CampaignSpec) -> int:
    return secrets.randbits(_SEED_BITS) if spec.seed is None else spec.seed


def _announce(use: Use, name: str, ordered: bool) -> None:
    use.bus.publish("campaign", name)
    if use.campaigns is not None:
        use.campaigns.wake()
    if ordered and use.fleet is not None:
        use.fleet.wake()
