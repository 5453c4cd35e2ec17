"""Models and their versions: push, list, show, and more builds of a version."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from covey_server import audit
from covey_server.api.paging import AfterName, Limit, Page
from covey_server.api.security import CSRF_FIELD, require
from covey_server.api.views import (
    BuildView,
    ModelDetail,
    ModelView,
    VersionView,
    build_view,
    digests_of,
    model_view,
    version_view,
)
from covey_server.audit import Actor
from covey_server.campaigns import choice
from covey_server.db.tables import Version
from covey_server.errors import Conflict, Forbidden, Invalid, NotFound, TooLarge, Unauthorized
from covey_server.problems import responses
from covey_server.registry import builds, checks, versions
from covey_server.registry.versions import Upload
from covey_server.services import Services, Use

router = APIRouter(prefix="/api/v1", tags=["models"], responses=responses(Unauthorized, Forbidden))

Changer = Annotated[Actor, Depends(require("operator", checks_model=True))]

_FILES = ("source", "calibration", "evaluation", "labels")
_UPLOADS = {f"{name}_upload": name for name in _FILES}
_FIELDS = ("version", "budget", "description", "metadata", "targets", *_UPLOADS, CSRF_FIELD)
_THERE: dict[int | str, dict[str, Any]] = {200: {"model": VersionView, "description": "It was already there"}}
_FORM = {
    "type": "object",
    "required": ["version"],
    "properties": {
        "source": {"type": "string", "format": "binary", "description": "the trained model, e.g. ONNX"},
        "calibration": {"type": "string", "format": "binary", "description": ".npz: an array per input, samples first"},
        "evaluation": {"type": "string", "format": "binary", "description": ".npz: as calibration, with `labels`"},
        "labels": {"type": "string", "format": "binary", "description": ".txt: one class name a line"},
        **{
            f"{name}_upload": {"type": "string", "description": f"in place of `{name}`: the id of an upload"}
            for name in ("source", "calibration", "evaluation", "labels")
        },
        "version": {"type": "string", "example": "1.0"},
        "budget": {"type": "number", "default": 0.01, "description": "highest absolute drop of the metric"},
        "description": {"type": "string", "description": "what the model is for"},
        "targets": {
            "type": "array",
            "items": {"type": "string"},
            "example": ["openvino-int8"],
            "description": "default: all that the enrolled devices' profiles need",
        },
        "metadata": {
            "type": "string",
            "description": "a JSON object for applications, e.g. preprocessing; `metric` and `max_batch` in it are for the builders",
        },
    },
}


class Targets(BaseModel):
    """Which targets to build; empty: all that the enrolled devices' profiles need."""

    targets: list[str] = Field(default=[], max_length=32, examples=[["openvino-int8", "tflite-int8"]])


@router.get("/models", summary="List the models")
def list_models(
    use: Use, _: Annotated[Actor, Depends(require("viewer"))], limit: Limit = 100, after: AfterName = ""
) -> Page[ModelView]:
    with use.database.reading() as session:
        found = versions.list_models(session, after, limit + 1)
    more = found[limit - 1].model.name if len(found) > limit else None
    return Page(items=[model_view(one) for one in found[:limit]], next=more)


@router.get("/models/{model}", summary="Show a model with its versions and their builds", responses=responses(NotFound))
def show_model(use: Use, model: str, _: Annotated[Actor, Depends(require("viewer"))]) -> ModelDetail:
    with use.database.reading() as session:
        found = versions.get_model(session, model)
        return ModelDetail(
            name=found.name,
            description=found.description,
            created_ms=found.created_ms,
            versions=_views(session, versions.list_versions(session, model)),
        )


@router.get("/models/{model}/versions/{version}", summary="Show a version", responses=responses(NotFound))
def show_version(use: Use, model: str, version: str, _: Annotated[Actor, Depends(require("viewer"))]) -> VersionView:
    with use.database.reading() as session:
        return _views(session, [versions.get_version(session, model, version)])[0]


@router.post(
    "/models/{model}/versions",
    summary="Push a version",
    description="Uploads a trained model and queues a build for every target. The same push again is answered with 200. Large files may be "
    "uploaded before, in pieces (`POST /uploads`), and named by their uploads here.",
    status_code=201,
    response_model=VersionView,
    responses={**_THERE, **responses(Conflict, TooLarge, Invalid)},
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}},
)
async def push_version(request: Request, response: Response, use: Use, model: str, actor: Changer) -> VersionView:
    actor.check_model(model)
    # Parsed here and not by the framework, so that nobody fills the disk before we know who it is.
    async with request.form(max_files=len(_FILES), max_fields=64) as form:
        view, new = await run_in_threadpool(_push, use, model, form, actor)
    response.status_code = 201 if new else 200
    return view


@router.post(
    "/models/{model}/versions/{version}/builds",
    summary="Build a version for more targets",
    responses=responses(NotFound, Invalid),
)
def add_builds(use: Use, model: str, version: str, body: Targets, actor: Changer) -> Page[BuildView]:
    """Targets that the version is built for already are left as they are; all builds of the named targets are returned, for
    a TensorRT engine with the check of the graph."""
    actor.check_model(model)
    named = versions.check_targets(body.targets)
    now_ms = use.clock()
    with use.database.session() as session:
        found = versions.get_version(session, model, version)
        targets = _with_check(use, named or versions.check_targets(choice.targets_needed(session)), now_ms)
        new = _queue(use, session, found, targets, now_ms)
        audit.record(session, actor, "build.queue", f"{model} {version}", {"targets": list(targets)}, now_ms)
        every = versions.builds_by_version(session, [found])[found.id]
    _announce(use, new)
    return Page(items=[build_view(one, found, checks.among(every)) for one in every if one.target in targets])


def push_files(use: Services, upload: Upload, sizes: dict[str, int], actor: Actor) -> tuple[VersionView, bool]:
    """Make the version whose files (bytes by SHA-256 in `sizes`) are in the blob store; shared with the console."""
    now_ms = use.clock()
    with use.database.session() as session:
        for sha256, size in sizes.items():
            versions.note_blob(session, sha256, size, now_ms)
        version, new = versions.push_version(session, upload, actor.name, now_ms)
        if new:
            version.traceparent = use.tracing.current()
        targets = upload.targets or (versions.check_targets(choice.targets_needed(session)) if new else ())
        targets = _with_check(use, targets, now_ms)
        queued = _queue(use, session, version, targets, now_ms)
        if new or queued:
            detail = {"source": upload.source, "budget": upload.budget, "targets": list(targets)}
            audit.record(session, actor, "version.push", f"{upload.model} {upload.version}", detail, now_ms)
        view = _views(session, [version])[0]
    _announce(use, queued)
    return view, new


def _push(use: Services, model: str, form: FormData, actor: Actor) -> tuple[VersionView, bool]:
    """Check the small fields first, then keep the files, then the rows."""
    for name, value in form.multi_items():
        if name not in (_FILES if isinstance(value, UploadFile) else _FIELDS):
            raise Invalid(f"there is no field {name[:80]!r} in a push, or not of this kind", field=name[:80])
    with contextlib.ExitStack() as held:
        parts = {name: part for name in _FILES if (part := _part(use, form, name, actor, held)) is not None}
        return _push_parts(use, model, form, parts, actor)


def _push_parts(
    use: Services, model: str, form: FormData, parts: dict[str, _Part], actor: Actor
) -> tuple[VersionView, bool]:
    source = parts.get("source")
    if source is None:
        raise Invalid("the push has no file `source`", field="source")
    checked: dict[str, Any] = {
        "model": versions.check_model_name(model),
        "version": versions.check_version_name(_text(form, "version")),
        "source_filename": versions.check_source_name(source.filename),
        "budget": versions.check_budget(_text(form, "budget") or "0.01"),
        "description": versions.check_description(_text(form, "description")),
        "metadata": versions.check_metadata(_text(form, "metadata")),
        "targets": versions.check_targets([str(one) for one in form.getlist("targets") if one]),
    }
    versions.check_source(checked["source_filename"], source.file)
    versions.check_evaluation(checked["metadata"], parts["evaluation"].file if "evaluation" in parts else None)
    sizes: dict[str, int] = {}
    for name, part in parts.items():
        sha256, size = part.keep(use)
        if size == 0:
            raise Invalid(f"the file {name} is empty", field=name)
        if part.sha256 not in ("", sha256):
            raise Invalid(f"the SHA-256 of the upload is {sha256}, not the announced one", field=name)
        sizes[sha256] = size
        checked[name] = sha256
    return push_files(use, Upload(**checked), sizes, actor)


@dataclass
class _Part:
    """A file of a push: in the form itself, or uploaded before. `sha256`: what was announced of it, if anything."""

    file: BinaryIO
    filename: str
    uploaded: Path | None = None
    sha256: str = ""

    def keep(self, use: Services) -> tuple[str, int]:
        """SHA-256 and bytes of it in the blob store."""
        if self.uploaded is not None:
            return use.blobs.adopt(self.uploaded)
        return use.blobs.put(self.file, use.settings.upload_max_bytes)


def _part(use: Services, form: FormData, name: str, actor: Actor, held: contextlib.ExitStack) -> _Part | None:
    file, upload = form.get(name), _text(form, f"{name}_upload")
    if upload and file is not None:
        raise Invalid(f"{name} and {name}_upload exclude one another", field=f"{name}_upload")
    if upload:
        found = use.uploads.finished(upload, actor.name)
        path = use.uploads.data(upload)
        return _Part(held.enter_context(path.open("rb")), found.said.filename, path, found.said.sha256)
    return _Part(file.file, file.filename or "") if isinstance(file, UploadFile) else None


def _text(form: FormData, name: str) -> str:
    value = form.get(name, "")
    return value if isinstance(value, str) else ""


def _with_check(use: Services, targets: tuple[str, ...], now_ms: int) -> tuple[str, ...]:
    return checks.with_check(targets, lambda target: use.workers.can_build(target, now_ms))


def _queue(use: Services, session: Session, version: Version, targets: tuple[str, ...], now_ms: int) -> list[int]:
    new = builds.queue(session, version.id, targets, lambda target: use.workers.can_build(target, now_ms), now_ms)
    return [one.id for one in new]


def _announce(use: Services, build_ids: list[int]) -> None:
    for build_id in build_ids:
        use.bus.publish("build", str(build_id))


def _views(session: Session, found: list[Version]) -> list[VersionView]:
    grouped = versions.builds_by_version(session, found)
    sizes = versions.sizes(session, digests_of(found))
    return [version_view(one, grouped[one.id], sizes) for one in found]
