"""Samples of what devices were asked and answered, for labelling: fetch them from devices, list, download, delete.

They may be pictures of people: only operators get them, and each fetch, download and deletion is in the audit log. A token that is for some
models alone gets those of its models alone, and has nothing fetched or deleted.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from covey_server import audit
from covey_server.api.devices import Fleet
from covey_server.api.paging import Limit, Page
from covey_server.api.security import require
from covey_server.audit import Actor
from covey_server.db.tables import Sample, SampleFetch
from covey_server.errors import Conflict, Forbidden, Invalid, NotFound, Unauthorized, Unavailable
from covey_server.fleet import groups
from covey_server.fleet.directory import get_device
from covey_server.problems import responses
from covey_server.samples import archive, fetches
from covey_server.services import Services, Use

router = APIRouter(prefix="/api/v1", tags=["samples"], responses=responses(Unauthorized, Forbidden))

Operator = Annotated[Actor, Depends(require("operator"))]
Device = Annotated[str | None, Query(max_length=64, description="of this device alone")]
Group = Annotated[str | None, Query(max_length=64, description="of this group's devices alone")]
Model = Annotated[str | None, Query(max_length=64, description="of this model alone")]
Before = Annotated[int | None, Query(ge=1, le=1 << 53, description="`next` of the page before")]
FetchId = Annotated[int, Path(ge=1, le=1 << 53, description="`id` of a fetch")]
MAX_FETCHED = 5000


class FetchBody(BaseModel):
    """Either `device` or `group`."""

    model_config = ConfigDict(extra="forbid")

    device: str | None = Field(default=None, max_length=64)
    group: str | None = Field(default=None, max_length=64, description="its devices that are online, 100 at most")
    model: str | None = Field(
        default=None, max_length=64, pattern=r"^[a-z0-9][a-z0-9._-]*$", description="default: of every model"
    )
    limit: int = Field(
        default=100, ge=1, le=MAX_FETCHED, description="of each device: the newest so many that are not here yet"
    )


class FetchView(BaseModel):
    id: int
    device: str
    model: str | None
    limit: int
    state: Literal["waiting", "running", "done", "failed"]
    reason: str = Field(description="why it failed; `none` otherwise")
    detail: str = Field(description="in words, also of what was left out")
    asked_by: str
    asked_ms: int
    ended_ms: int | None
    found: int = Field(description="samples on the device that were not here, up to the limit")
    fetched: int = Field(description="of them, that are here now")
    left_out: int = Field(description="of them, gone meanwhile or no samples")
    bytes: int


class Fetches(BaseModel):
    items: list[FetchView]
    skipped: dict[str, str] = Field(description="devices of the group that cannot be asked now, and why")


class SampleView(BaseModel):
    """One sample that is here. `sha256` and `size` are of its `.npz` file."""

    id: int
    device: str
    model: str
    version: str
    target: str
    build: str = Field(description="digest of the build that answered")
    time_ms: int = Field(description="when it answered, by the device's clock")
    request: str = Field(description="the request's id, as its caller gave it")
    file: str = Field(description="its name in an archive")
    sha256: str
    size: int
    fetched_ms: int


class Deleted(BaseModel):
    deleted: int


@router.post(
    "/sample-fetches",
    summary="Fetch samples from a device, or from a group's devices",
    description="The devices must be online, keep samples, and let them leave by their own settings. It goes on by itself; "
    "`GET /sample-fetches/ID` tells how it stands. A sample that is here already is not fetched again.",
    status_code=202,
    responses=responses(NotFound, Conflict, Invalid, Unavailable),
)
def fetch_samples(use: Use, fleet: Fleet, body: FetchBody, actor: Operator) -> Fetches:
    if (body.device is None) == (body.group is None):
        raise Invalid("name either a device or a group", field="device")
    now_ms = use.clock()
    skipped: dict[str, str] = {}
    with use.database.session() as session:
        if body.device is not None:
            made = [fetches.ask_device(session, body.device, body.model, body.limit, actor.name, now_ms)]
        else:
            made, skipped = fetches.ask_group(session, body.group or "", body.model, body.limit, actor.name, now_ms)
        for row in made:
            detail = {"model": body.model, "limit": body.limit, "group": body.group}
            audit.record(session, actor, "samples.fetch", row.device, detail, now_ms)
        items = [fetch_view(row) for row in made]
    fleet.samples.wake()
    for view in items:
        use.bus.publish("device", view.device)
    return Fetches(items=items, skipped=skipped)


@router.get("/sample-fetches/{fetch}", summary="How a fetch of samples stands", responses=responses(NotFound))
def show_fetch(use: Use, fetch: FetchId, _: Operator) -> FetchView:
    with use.database.reading() as session:
        return fetch_view(fetches.get_fetch(session, fetch))


@router.get("/sample-fetches", summary="Fetches of samples, the newest first", responses=responses(NotFound))
def list_fetches(
    use: Use, _: Operator, device: Device = None, limit: Limit = 100, after: Before = None
) -> Page[FetchView]:
    with use.database.reading() as session:
        found = fetches.fetches_of(session, device, limit + 1, after)
    return Page(
        items=[fetch_view(one) for one in found[:limit]], next=str(found[limit - 1].id) if len(found) > limit else None
    )


@router.get("/samples", summary="Samples that are here, the newest to come first", responses=responses(NotFound))
def list_samples(
    use: Use,
    actor: Operator,
    device: Device = None,
    group: Group = None,
    model: Model = None,
    limit: Limit = 100,
    after: Before = None,
) -> Page[SampleView]:
    _check_model(actor, model)
    with use.database.reading() as session:
        query = select(Sample).where(*_which(session, device, group, model)).order_by(Sample.id.desc()).limit(limit + 1)
        found = list(session.scalars(query if after is None else query.where(Sample.id < after)))
    return Page(
        items=[_sample_view(one) for one in found[:limit]],
        next=str(found[limit - 1].id) if len(found) > limit else None,
    )


@router.get(
    "/samples/archive",
    summary="Samples as one zip file",
    description="The newest ones by the time of their requests, `DEVICE/MODEL/TIME-NUMBER.npz` each as `numpy.load` reads it; `_classes/` has the "
    "names of the classes where a version was pushed with them, `index.jsonl` a line for each sample.",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}},
        **responses(NotFound, Unavailable),
    },
)
def download_samples(
    use: Use,
    fleet: Fleet,
    actor: Operator,
    device: Device = None,
    group: Group = None,
    model: Model = None,
    limit: Annotated[int, Query(ge=1, le=archive.MAX_SAMPLES)] = 1000,
) -> StreamingResponse:
    _check_model(actor, model)
    with use.database.session() as session:
        found = archive.newest(session, limit, *_which(session, device, group, model))
        if not found:
            raise NotFound("no such samples are here; fetch them first", code="no_samples")
        labels = archive.label_files(session, found)
        _record(session, use, actor, "samples.download", device, group, model, len(found))
    headers = {
        "Content-Disposition": f'attachment; filename="samples-{device or "devices"}.zip"',
        "Cache-Control": "no-store",
    }
    content = archive.written(found, labels, fleet.samples.shelf.files, use.blobs)
    return StreamingResponse(content, media_type="application/zip", headers=headers)


@router.delete(
    "/samples",
    summary="Delete samples that are here",
    description="Here, for good; what a device keeps stays there. Name a device, a group or a model, or several of them.",
    responses=responses(NotFound, Invalid, Unavailable),
)
def delete_samples(
    use: Use, fleet: Fleet, actor: Operator, device: Device = None, group: Group = None, model: Model = None
) -> Deleted:
    if device is None and group is None and model is None:
        raise Invalid("name a device, a group or a model", field="device")
    with use.database.reading() as session:
        which = _which(session, device, group, model)
    gone = fleet.samples.shelf.forget(*which)
    with use.database.session() as session:
        _record(session, use, actor, "samples.delete", device, group, model, gone)
    use.bus.publish("device", device or "")
    return Deleted(deleted=gone)


def _check_model(actor: Actor, model: str | None) -> None:
    """Raises `Forbidden` for a token that is for some models alone, unless it asks for one of them."""
    if actor.models is not None:
        actor.check_model(model or "")


def fetch_view(row: SampleFetch) -> FetchView:
    return FetchView(
        id=row.id,
        device=row.device,
        model=row.model,
        limit=row.most,
        state=row.state,  # type: ignore[arg-type]  # the desk writes these alone
        reason=row.reason,
        detail=row.detail,
        asked_by=row.asked_by,
        asked_ms=row.asked_ms,
        ended_ms=row.ended_ms,
        found=row.found,
        fetched=row.fetched,
        left_out=row.left_out,
        bytes=row.bytes,
    )


def _sample_view(row: Sample) -> SampleView:
    return SampleView(
        id=row.id,
        device=row.device,
        model=row.model,
        version=row.version,
        target=row.target,
        build=row.build,
        time_ms=row.time_ms,
        request=row.request,
        file=archive.file_name(row),
        sha256=row.sha256,
        size=row.size,
        fetched_ms=row.fetched_ms,
    )


def _which(session: Session, device: str | None, group: str | None, model: str | None) -> list[ColumnElement[bool]]:
    """Conditions for a query over samples. Raises `NotFound` for a device or group that is not there."""
    which: list[ColumnElement[bool]] = []
    if device is not None:
        get_device(session, device)
        which.append(Sample.device == device)
    if group is not None:
        which.append(Sample.device.in_(groups.members_query(session, group)))
    if model is not None:
        which.append(Sample.model == model)
    return which


def _record(
    session: Session,
    use: Services,
    actor: Actor,
    action: str,
    device: str | None,
    group: str | None,
    model: str | None,
    number: int,
) -> None:
    detail = {"device": device, "group": group, "model": model, "samples": number}
    audit.record(session, actor, action, device or group or model or "all devices", detail, use.clock())
