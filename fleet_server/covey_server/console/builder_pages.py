"""A new campaign: the form beside the file, the plan before anything moves, then made and perhaps started."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from covey_server.api.security import require
from covey_server.audit import Actor
from covey_server.campaigns import commands
from covey_server.campaigns.plan_views import plan_view
from covey_server.campaigns.planning import prepare
from covey_server.console import html
from covey_server.console.builder import file as builder
from covey_server.console.builder import texts
from covey_server.console.builder.grammar import tree
from covey_server.console.campaign_pages import announce
from covey_server.console.html import ConsoleRoute
from covey_server.core.document import MAX_BYTES, Document, DocumentError, parse
from covey_server.core.engine import Action
from covey_server.core.spec import CampaignSpec, read_spec
from covey_server.db.tables import Campaign, Model, Version
from covey_server.errors import Conflict, Invalid, NotFound, TooLarge
from covey_server.fleet import groups
from covey_server.services import Use

router = APIRouter(route_class=ConsoleRoute, prefix="/new-campaign")

Operator = Annotated[Actor, Depends(require("operator"))]
File = Annotated[str, Form(max_length=MAX_BYTES)]
_SEED_BITS = 48
_SUGGESTED = 200
PLAN_DEVICES = 12  # of each stage
# Which fields the page has suggestions for.
_LISTS = {
    "CampaignSpec.model": "all-models",
    "CampaignSpec.version": "all-versions",
    "Stage.group": "all-groups",
    "Target.groups": "all-groups",
    "DeviceSet.groups": "all-groups",
}


@router.get("")
def new(request: Request, use: Use, _: Operator, model: str = "", version: str = "", clone: str = "") -> Response:
    with use.database.reading() as session:
        names = groups.names(session)
        example = _clone(session, clone[:64]) if clone else _example(session, names, model[:64], version[:64])
        models = session.scalars(select(Model.name).order_by(Model.name).limit(_SUGGESTED)).all()
        newest = select(Version.name).order_by(Version.id.desc()).limit(_SUGGESTED)
        versions = list(dict.fromkeys(session.scalars(newest)))
    return html.page(
        request,
        "new_campaign.html",
        now=use.clock(),
        example=example,
        clone=clone[:64],
        models=models,
        versions=versions,
        groups=names,
        **_form(_document(example)),
    )


@router.post("/write")
async def write(request: Request, _: Operator) -> Response:
    """The file that the form stands for."""
    text = builder.write(builder.read(await _values(request)))
    return html.page(request, "builder_file.html", text=text, oob=False)


@router.post("/form")
async def form(request: Request, _: Operator) -> Response:
    """The form with a row more or less, or with a part opened; and the file that it stands for."""
    values = await _values(request)
    add, drop = values.pop("add", ""), values.pop("drop", "")
    document = builder.changed(builder.read(values), add, drop)
    return html.page(request, "builder_form.html", text=builder.write(document), **_form(document))


@router.post("/read")
def read(request: Request, _: Operator, file: File = "") -> Response:
    """The form as the file has it."""
    try:
        _read(file)
    except DocumentError as error:
        raise Invalid(str(error), code="bad_campaign_file") from error
    return html.page(request, "builder_form.html", text=None, **_form(_document(file)))


@router.post("/plan")
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


@router.post("")
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
    announce(use, spec.name, ordered)
    return Response(status_code=204, headers={"HX-Redirect": f"/campaigns/{spec.name}"})


def _form(document: dict[str, Any]) -> dict[str, Any]:
    return {
        "tree": tree(),
        "values": builder.shown(document),
        "sections": texts.SECTIONS,
        "label": texts.label,
        "hint": texts.hint,
        "choice": texts.choice,
        "adding": texts.adding,
        "main_names": texts.main_names,
        "lists": _LISTS,
    }


async def _values(request: Request) -> dict[str, str]:
    """The form's values by their names; several of one name are put together."""
    async with request.form(max_files=0, max_fields=builder.MAX_VALUES) as given:
        found: dict[str, str] = {}
        for name, value in _texts(given.multi_items()):
            found[name] = f"{found[name]} {value}" if name in found else value
    return found


def _texts(items: Iterable[tuple[str, Any]]) -> Iterable[tuple[str, str]]:
    return ((name, value.replace("\r\n", "\n")) for name, value in items if isinstance(value, str))


def _example(session: Session, names: list[str], model: str, version: str) -> str:
    query = select(Version).order_by(Version.id.desc()).limit(1)
    if model:
        query = query.where(Version.model == model)
    if version:
        query = query.where(Version.name == version)
    return html.render("campaign.yaml", version=session.scalar(query), groups=names)


def _clone(session: Session, name: str) -> str:
    """The file of a campaign under a name that is free."""
    held = session.scalar(select(Campaign).where(Campaign.name == name))
    if held is None:
        raise NotFound(f"there is no campaign {name}")
    document = {**_document(held.source), "name": _free_name(session, name)}
    return builder.write(document)


def _free_name(session: Session, name: str) -> str:
    for number in range(2, 1000):
        end = f"-{number}"
        free = name[: 64 - len(end)] + end
        if session.scalar(select(Campaign.id).where(Campaign.name == free)) is None:
            return free
    return name


def _document(text: str) -> dict[str, Any]:
    """The file's mapping, empty for a file that is none."""
    try:
        value = parse(text).value
    except DocumentError:
        return {}
    return value if isinstance(value, dict) else {}


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
