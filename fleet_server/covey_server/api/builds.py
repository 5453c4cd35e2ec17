"""Builds: which there are, how far they are, what came of them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.responses import FileResponse

from covey_contract.manifest import Manifest
from covey_contract.wire import decode
from covey_server import audit
from covey_server.api.paging import AfterId, Limit, Number, Page
from covey_server.api.security import require
from covey_server.api.views import BuildDetail, BuildView, build_detail, build_view
from covey_server.audit import Actor
from covey_server.db.tables import Version
from covey_server.errors import Conflict, Forbidden, Invalid, NotFound, Unauthorized
from covey_server.problems import responses
from covey_server.registry import builds, checks
from covey_server.services import Use

router = APIRouter(prefix="/api/v1", tags=["builds"], responses=responses(Unauthorized, Forbidden))


@router.get("/builds", summary="List builds, oldest first", responses=responses(Invalid))
def list_builds(
    use: Use,
    _: Annotated[Actor, Depends(require("viewer"))],
    model: Annotated[str | None, Query(max_length=64)] = None,
    version: Annotated[str | None, Query(max_length=64)] = None,
    state: Annotated[str | None, Query(description=f"one of {', '.join(builds.STATES)}")] = None,
    limit: Limit = 100,
    after: AfterId = 0,
) -> Page[BuildView]:
    if state is not None and state not in builds.STATES:
        raise Invalid(f"{state[:40]!r} is none of {', '.join(builds.STATES)}", field="state")
    with use.database.reading() as session:
        found = builds.find(session, model=model, version=version, state=state, after=after, limit=limit + 1)
        check = checks.of_versions(session, (of.id for _, of in found))
    more = str(found[limit - 1][0].id) if len(found) > limit else None
    return Page(items=[build_view(build, of, check.get(of.id)) for build, of in found[:limit]], next=more)


@router.get("/builds/{build_id}", summary="Show a build with report and manifest", responses=responses(NotFound))
def show_build(use: Use, build_id: Number, _: Annotated[Actor, Depends(require("viewer"))]) -> BuildDetail:
    with use.database.reading() as session:
        build = builds.get_build(session, build_id)
        check = checks.of_versions(session, [build.version_id]).get(build.version_id)
        return build_detail(build, session.get_one(Version, build.version_id), check)


@router.get(
    "/builds/{build_id}/provenance",
    summary="Where a build comes from",
    description="An in-toto Statement with a SLSA provenance predicate, as the builder wrote it; the signed manifest pins its SHA-256.",
    response_class=FileResponse,
    responses=responses(NotFound),
)
def show_provenance(use: Use, build_id: Number, _: Annotated[Actor, Depends(require("viewer"))]) -> FileResponse:
    with use.database.reading() as session:
        build = builds.get_build(session, build_id)
        if build.manifest is None:
            raise NotFound(f"build {build_id} is {build.state}: there is nothing to tell the provenance of")
        sha256 = decode(Manifest, build.manifest).provenance_sha256
    if sha256 is None:
        raise NotFound(f"build {build_id} came without a statement of provenance")
    use.blobs.size(sha256)
    return FileResponse(use.blobs.path(sha256), media_type="application/vnd.in-toto+json")


@router.post(
    "/builds/{build_id}/retry", summary="Build again what did not succeed", responses=responses(NotFound, Conflict)
)
def retry_build(use: Use, build_id: Number, actor: Annotated[Actor, Depends(require("operator"))]) -> BuildView:
    now_ms = use.clock()
    with use.database.session() as session:
        build = builds.retry(session, build_id, lambda target: use.workers.can_build(target, now_ms))
        version = session.get_one(Version, build.version_id)
        audit.record(
            session, actor, "build.retry", f"{version.model} {version.name} {build.target}", {"build": build_id}, now_ms
        )
        view = build_view(build, version, checks.of_versions(session, [version.id]).get(version.id))
    use.bus.publish("build", str(build_id))
    return view
