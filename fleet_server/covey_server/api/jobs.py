"""The worker's side of builds: lease a job, fetch its files, deliver what came of it."""

from __future__ import annotations

import base64
import binascii
import logging
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from covey_contract.building import BuildReport, LeaseRequest, Outcome
from covey_contract.wire import encode
from covey_server import audit
from covey_server.api.paging import Number
from covey_server.api.security import require
from covey_server.audit import Actor
from covey_server.db.tables import Build, Version
from covey_server.errors import Conflict, Forbidden, Invalid, NotFound, TooLarge, Unauthorized
from covey_server.problems import responses
from covey_server.registry import builds, receipt
from covey_server.registry.builds import Signed
from covey_server.registry.versions import note_blob
from covey_server.releases.catch_up import release_of
from covey_server.releases.errors import KeysMissing
from covey_server.services import Services, Use
from covey_server.tracing.spans import Attribute, Past

log = logging.getLogger(__name__)
router = APIRouter(prefix="/api/v1", tags=["jobs"], responses=responses(Unauthorized, Forbidden))

_WRITE_BYTES = 1 << 20
_MAX_TARGETS = 64
_LEASED: dict[int | str, dict[str, Any]] = {
    200: {"description": "A BuildJob", "content": {"application/json": {"schema": {"type": "object"}}}},
    204: {"description": "There is no job for this worker"},
}


class LeaseBody(BaseModel):
    """What a worker can build. Targets may end in `*`."""

    worker: str = Field(max_length=256, examples=["build-host-1"])
    targets: list[str] = Field(max_length=_MAX_TARGETS, examples=[["openvino-*", "tflite-int8"]])
    seconds: int = Field(default=60, ge=5, le=3600, description="how long the lease lasts unless renewed")


class RenewBody(BaseModel):
    lease: str = Field(max_length=64)
    seconds: int = Field(default=60, ge=5, le=3600)


class Renewed(BaseModel):
    lease_expires_ms: int


class Delivered(BaseModel):
    sha256: str
    size: int


class FinishBody(BaseModel):
    """How the job ended: the report, and for a build its manifest's exact bytes in base64."""

    lease: str = Field(max_length=64)
    report: dict[str, object] = Field(description="a BuildReport")
    manifest: str | None = Field(default=None, max_length=128 * 1024, description="base64; null unless it was built")


class Finished(BaseModel):
    id: int
    state: str
    digest: str | None


@router.post(
    "/jobs/lease",
    summary="Take a job",
    responses={**_LEASED, **responses(Invalid)},
)
def lease_job(use: Use, body: LeaseBody, _: Annotated[Actor, Depends(require("worker"))]) -> Response:
    request = LeaseRequest(worker=body.worker, targets=tuple(body.targets), seconds=body.seconds)
    now_ms = use.clock()
    use.workers.seen(request.worker, request.targets, now_ms)
    # An idle worker asks again and again: only where there may be work is the writers' queue entered.
    with use.database.reading() as session:
        if not builds.may_lease(session, request, now_ms):
            return Response(status_code=204)
    with use.database.session() as session:
        changed = builds.release_expired(session, use.settings.build_attempts, now_ms)
        job = builds.lease(session, request, now_ms)
    for build_id in [*changed, *([job.id] if job is not None else [])]:
        use.bus.publish("build", str(build_id))
    if job is None:
        return Response(status_code=204)
    return Response(encode(job), media_type="application/json")


@router.post("/jobs/{job_id}/renew", summary="Keep a job", responses=responses(NotFound, Conflict, Invalid))
def renew_job(use: Use, job_id: Number, body: RenewBody, _: Annotated[Actor, Depends(require("worker"))]) -> Renewed:
    with use.database.session() as session:
        return Renewed(lease_expires_ms=builds.renew(session, job_id, body.lease, body.seconds, use.clock()))


@router.put(
    "/jobs/{job_id}/files/{sha256}",
    summary="Deliver a file of a build",
    description="The raw bytes as the body. A file that is already there may be delivered again.",
    responses=responses(NotFound, Conflict, TooLarge, Invalid),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def deliver_file(
    request: Request,
    use: Use,
    job_id: Number,
    sha256: str,
    lease: Annotated[str, Query(max_length=64)],
    _: Annotated[Actor, Depends(require("worker"))],
) -> Delivered:
    await run_in_threadpool(_check_lease, use, job_id, lease)
    use.blobs.path(sha256)  # refuses what is no SHA-256
    with use.blobs.writer(use.settings.build_file_max_bytes) as writer:
        pending = bytearray()
        async for chunk in request.stream():
            pending += chunk
            if len(pending) >= _WRITE_BYTES:
                await run_in_threadpool(writer.write, bytes(pending))
                pending.clear()
        await run_in_threadpool(writer.write, bytes(pending))
        if writer.sha256 != sha256:
            raise Invalid(f"the file's SHA-256 is {writer.sha256}, not the announced one", field="sha256")
        await run_in_threadpool(writer.commit)
    await run_in_threadpool(_note, use, sha256, writer.size)
    return Delivered(sha256=sha256, size=writer.size)


@router.post(
    "/jobs/{job_id}/finish",
    summary="Say how a job ended",
    description="Checks manifest and files, then signs. Saying it twice with the same lease is harmless.",
    responses=responses(NotFound, Conflict, Invalid),
)
def finish_job(
    use: Use, job_id: Number, body: FinishBody, actor: Annotated[Actor, Depends(require("worker"))]
) -> Finished:
    with use.database.reading() as session:
        if before := builds.finished_before(session, job_id, body.lease):
            return Finished(id=job_id, state=before.state, digest=before.digest)
        build = builds.held(session, job_id, body.lease)
        version = session.get_one(Version, build.version_id)
    report, signed = _receive(use, body, version, build.target)
    if signed is not None:
        _release(use, signed)
    now_ms = use.clock()
    with use.database.session() as session:
        build = builds.finish(session, job_id, body.lease, report, signed, now_ms)
        build.traceparent = use.tracing.past(_span(build, version, report), version.traceparent)
        detail = {"outcome": build.state, "digest": build.digest, "worker": build.worker, "reason": report.reason}
        audit.record(session, actor, "build.finish", f"{version.model} {version.name} {build.target}", detail, now_ms)
    use.bus.publish("build", str(job_id))
    return Finished(id=job_id, state=build.state, digest=build.digest)


@router.get(
    "/blobs/{sha256}",
    summary="Fetch a file by its SHA-256",
    response_class=FileResponse,
    responses=responses(NotFound),
)
def fetch_blob(use: Use, sha256: str, _: Annotated[Actor, Depends(require("worker"))]) -> FileResponse:
    use.blobs.size(sha256)
    return FileResponse(use.blobs.path(sha256), media_type="application/octet-stream")


def _span(build: Build, version: Version, report: BuildReport) -> Past:
    """The build as a part of its version's trace: from when a worker took it to now."""
    attributes: dict[str, Attribute] = {
        "covey.model": version.model,
        "covey.version": version.name,
        "covey.target": build.target,
        "covey.outcome": build.state,
        "covey.worker": build.worker or "",
        "covey.waited_s": max(0, (build.started_ms or build.created_ms) - build.created_ms) / 1000,
    }
    began_ms, ended_ms = build.started_ms or build.created_ms, build.finished_ms or build.created_ms
    problem = report.reason if report.outcome is Outcome.FAILED else ""
    return Past(f"build {version.model} {version.name} {build.target}", began_ms, ended_ms, attributes, problem)


def _receive(use: Services, body: FinishBody, version: Version, target: str) -> tuple[BuildReport, Signed | None]:
    """Report and signed manifest, after every check; reads all files of the build once."""
    report = receipt.check_report(msgspec.json.encode(body.report), target, has_manifest=body.manifest is not None)
    if body.manifest is None:
        return report, None
    try:
        payload = base64.b64decode(body.manifest, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Invalid("the manifest is not base64", field="manifest") from error
    manifest = receipt.check_manifest(payload, version.model, version.name, target)
    receipt.check_files(use.blobs, manifest, _materials(version))
    return report, Signed(manifest, payload, use.keys.sign_manifest(payload))


def _materials(version: Version) -> dict[str, str | None]:
    """What every build of a version is made from, as a statement of provenance names it."""
    return {
        "source": version.source_blob,
        "calibration": version.calibration_blob,
        "evaluation": version.evaluation_blob,
        "labels": version.labels_blob,
    }


def _release(use: Services, signed: Signed) -> None:
    """Before anybody can see the build: an order for it would be refused otherwise. What cannot be released now is later."""
    if use.releases is None:
        return
    try:
        use.releases.release([release_of(signed.manifest, signed.payload)])
    except KeysMissing as error:
        log.error("%s %s %s: %s", signed.manifest.model, signed.manifest.version, signed.manifest.target, error.detail)


def _check_lease(use: Services, job_id: int, lease: str) -> None:
    with use.database.reading() as session:
        builds.held(session, job_id, lease)


def _note(use: Services, sha256: str, size: int) -> None:
    with use.database.session() as session:
        note_blob(session, sha256, size, use.clock())
