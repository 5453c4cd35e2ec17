"""The pages of campaigns: the list, one campaign live, its buttons, and a new one with its plan shown before anything moves."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response
from sqlalchemy import select

from covey_server.api.security import require
from covey_server.audit import Actor
from covey_server.campaigns import commands
from covey_server.campaigns.planning import prepare
from covey_server.campaigns.views import plan_view
from covey_server.console import html, live
from covey_server.console.html import ConsoleRoute
from covey_server.console.live_pages import Viewer, live_page
from covey_server.core.document import MAX_BYTES, Document, DocumentError
from covey_server.core.engine import Action
from covey_server.core.spec import CampaignSpec, read_spec
from covey_server.db.tables import Version
from covey_server.errors import Conflict, Invalid, TooLarge
from covey_server.fleet import groups
from covey_server.services import Services, Use

router = APIRouter(route_class=ConsoleRoute)

Operator = Annotated[Actor, Depends(require("operator"))]
File = Annotated[str, Form(max_length=MAX_BYTES)]
_SEED_BITS = 48
PLAN_DEVICES = 12  # of each stage


@router.get("/campaigns")
def campaigns(request: Request, use: Use, _: Viewer) -> Response:
    return live_page(request, use, "campaigns", dict(request.query_params), "campaigns.html")


@router.get("/new-campaign")
def new(request: Request, use: Use, _: Operator, model: str = "", version: str = "") -> Response:
    with use.database.reading() as session:
        query = select(Version).order_by(Version.id.desc()).limit(1)
        if model:
            query = query.where(Version.model == model)
        if version:
            query = query.where(Version.name == version)
        found = session.scalar(query)
        names = groups.names(session)
    example = html.render("campaign.yaml", version=found, groups=names)
    return html.page(request, "new_campaign.html", now=use.clock(), example=example, groups=names)


@router.post("/new-campaign/plan")
def plan(request: Request, use: Use, _: Operator, file: File = "") -> Response:
    """The plan, or what is wrong with the file and on which line. Moves nothing."""
    try:
        spec, document = _read(file)
        seed = secrets.randbits(_SEED_BITS) if spec.seed is None else spec.seed
        with use.database.reading() as session:
            view = plan_view(session, spec, prepare(session, spec, seed, document.error), PLAN_DEVICES)
    except DocumentError as error:
        return html.page(request, "plan_problem.html", problem=error.message, line=error.line, field=error.field)
    return html.page(request, "plan.html", now=use.clock(), plan=view, digest=_digest(file), most=PLAN_DEVICES)


@router.post("/new-campaign")
def create(
    use: Use,
    actor: Operator,
    file: File = "",
    seed: Annotated[int, Form(ge=0, lt=1 << 53)] = 0,
    digest: Annotated[str, Form(max_length=64)] = "",
    start: Annotated[bool, Form()] = False,
) -> Response:
    """What was planned, with the plan's own seed, so that it is what was shown."""
    if not hmac.compare_digest(digest, _digest(file)):
        raise Conflict("the file has changed since its plan was shown; look at the plan again", code="plan_is_old")
    ordered = False
    try:
        spec, document = _read(file)
        with use.database.session() as session:
            now_ms = use.clock()
            commands.create(session, spec, _plain(file), seed, document.error, actor, now_ms)
            if start:
                ordered = commands.act(session, spec.name, Action.START, actor, now_ms)
    except DocumentError as error:
        raise Invalid(str(error), field=error.field or None, code="bad_campaign_file") from error
    _announce(use, spec.name, ordered)
    return Response(status_code=204, headers={"HX-Redirect": f"/campaigns/{spec.name}"})


@router.get("/campaigns/{name}")
def campaign(request: Request, use: Use, name: str, _: Viewer) -> Response:
    given = {**live.parameters_of("campaign", request.query_params), "name": name}
    return live_page(request, use, "campaign", given, "campaign.html")


@router.post("/campaigns/{name}/{action}")
def act(request: Request, use: Use, name: str, action: Action, actor: Operator) -> Response:
    """Tell it; the answer is the live region as it is now, with the filters of the page that asked."""
    with use.database.session() as session:
        ordered = commands.act(session, name, action, actor, use.clock())
    _announce(use, name, ordered)
    given = {**live.parameters_of("campaign", request.query_params), "name": name}
    with use.database.reading() as session:
        return Response(live.render(session, "campaign", given, use.clock()), media_type="text/html; charset=utf-8")


def _read(file: str) -> tuple[CampaignSpec, Document]:
    data = _plain(file).encode()
    if len(data) > MAX_BYTES:
        raise TooLarge(f"a campaign file has at most {MAX_BYTES} bytes")
    return read_spec(data)


def _plain(file: str) -> str:
    """Forms send line ends as CR LF."""
    return file.replace("\r\n", "\n")


def _digest(file: str) -> str:
    return hashlib.sha256(_plain(file).encode()).hexdigest()


def _announce(use: Services, name: str, ordered: bool) -> None:
    use.bus.publish("campaign", name)
    if use.campaigns is not None:
        use.campaigns.wake()
    if ordered and use.fleet is not None:
        use.fleet.wake()
