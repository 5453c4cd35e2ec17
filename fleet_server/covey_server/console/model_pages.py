"""The pages of models, versions and builds, and the form that pushes a version."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.responses import RedirectResponse

from covey_server import audit
from covey_server.api.models import push_files
from covey_server.api.security import require
from covey_server.audit import Actor
from covey_server.console import html, model_view
from covey_server.console.html import ConsoleRoute
from covey_server.console.live_pages import Viewer, live_page
from covey_server.errors import Invalid
from covey_server.registry import builds, versions
from covey_server.registry.versions import Upload
from covey_server.services import Services, Use

router = APIRouter(route_class=ConsoleRoute)

Operator = Annotated[Actor, Depends(require("operator"))]
_FILES = ("source", "calibration", "evaluation", "labels")


@router.get("/models")
def models(request: Request, use: Use, _: Viewer, after: str = "") -> Response:
    with use.database.reading() as session:
        found = model_view.models(session, after[:128])
    return html.page(
        request, "models.html", now=use.clock(), page=found, filters={"after": after[:128]} if after else {}
    )


@router.get("/push")
def push_form(request: Request, use: Use, _: Operator, model: str = "") -> Response:
    return html.page(request, "push.html", now=use.clock(), model=model[:64])


@router.post("/push")
async def push(request: Request, use: Use, actor: Operator) -> Response:
    """Answers htmx with where to go, a plain form with the way there."""
    async with request.form(max_files=len(_FILES), max_fields=16) as form:
        model, version = await run_in_threadpool(_push, use, form, actor)
    where = f"/models/{quote(model)}?version={quote(version)}"
    if html.wants_fragment(request):
        return Response(status_code=204, headers={"HX-Redirect": where})
    return RedirectResponse(where, 303)


@router.get("/models/{name}")
def model(request: Request, use: Use, name: str, _: Viewer, version: str = "") -> Response:
    return live_page(request, use, "model", {"name": name, "version": version}, "model.html")


@router.get("/models/{name}/choices")
def choices(request: Request, use: Use, name: str, _: Viewer, version: str = "") -> Response:
    """A part of the model's page, asked for when it is looked at."""
    with use.database.reading() as session:
        found = model_view.choices(session, name, version[:64])
    return html.page(request, "model_choices.html", choices=found)


@router.get("/builds/{build_id}")
def build(request: Request, use: Use, build_id: int, _: Viewer) -> Response:
    with use.database.reading() as session:
        row, version, cell = model_view.build(session, build_id)
    return html.page(request, "build.html", now=use.clock(), build=row, version=version, cell=cell)


@router.post("/builds/{build_id}/retry")
def retry(request: Request, use: Use, build_id: int, actor: Operator) -> Response:
    now_ms = use.clock()
    with use.database.session() as session:
        builds.retry(session, build_id, lambda target: use.workers.can_build(target, now_ms))
        audit.record(session, actor, "build.retry", str(build_id), {}, now_ms)
    use.bus.publish("build", str(build_id))
    if html.wants_fragment(request):
        return Response(status_code=204, headers={"HX-Refresh": "true"})
    return RedirectResponse(f"/builds/{build_id}", 303)


def _push(use: Services, form: FormData, actor: Actor) -> tuple[str, str]:
    """As `POST /models/{model}/versions`: the small fields first, then the files, then the rows."""
    source = form.get("source")
    if not isinstance(source, UploadFile) or not source.filename:
        raise Invalid("choose the file of the trained model", field="source")
    checked: dict[str, Any] = {
        "model": versions.check_model_name(_text(form, "model")),
        "version": versions.check_version_name(_text(form, "version")),
        "source_filename": versions.check_source_name(source.filename),
        "budget": versions.check_budget(_text(form, "budget") or "0.01"),
        "description": versions.check_description(_text(form, "description")),
        "metadata": versions.check_metadata(_text(form, "metadata")),
        "targets": versions.check_targets(_text(form, "targets").replace(",", " ").split()),
    }
    versions.check_source(checked["source_filename"], source.file)
    evaluation = form.get("evaluation")
    given = evaluation.file if isinstance(evaluation, UploadFile) and evaluation.filename else None
    versions.check_evaluation(checked["metadata"], given)
    sizes: dict[str, int] = {}
    for name in _FILES:
        file = form.get(name)
        # A browser sends a file without name for a field that was left empty.
        if not isinstance(file, UploadFile) or not file.filename:
            continue
        sha256, size = use.blobs.put(file.file, use.settings.upload_max_bytes)
        if size == 0:
            raise Invalid(f"the file {name} is empty", field=name)
        sizes[sha256] = size
        checked[name] = sha256
    view, _ = push_files(use, Upload(**checked), sizes, actor)
    return view.model, view.version


def _text(form: FormData, name: str) -> str:
    value = form.get(name, "")
    return value.strip() if isinstance(value, str) else ""
