"""A build's files for its devices, by content, with ranges: what they fetch by HTTPS instead of asking for blocks."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header
from fastapi.responses import FileResponse
from sqlalchemy import select

from covey_contract.manifest import Manifest
from covey_contract.wire import decode
from covey_server.db.tables import Build
from covey_server.errors import Invalid, NotFound, Unauthorized, Unavailable
from covey_server.problems import responses
from covey_server.services import Use

router = APIRouter(prefix="/api/v1", tags=["devices"])

_FOR_EVER = "private, max-age=31536000, immutable"


@router.get(
    "/delivery/{sha256}",
    summary="A file of a build, for a device that has been ordered to run it",
    description="The bearer token comes with the order. `Range` and `If-Range` are understood; the ETag is the file's SHA-256.",
    response_class=FileResponse,
    responses=responses(Invalid, Unauthorized, NotFound, Unavailable),
)
def get_blob(use: Use, sha256: str, authorization: Annotated[str, Header(max_length=512)] = "") -> FileResponse:
    scheme, _, ticket = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthorized
    if use.fleet is None:
        raise Unavailable("this server has no fleet")
    build = use.fleet.tickets.build_of(ticket)
    delta = use.fleet.deltas.of(sha256)
    with use.database.reading() as session:
        manifest = session.scalar(select(Build.manifest).where(Build.digest == build))
    is_delta = delta is not None and delta.new == build
    if manifest is None or (
        not is_delta and sha256 not in {entry.sha256 for entry in decode(Manifest, manifest).wire_files()}
    ):
        raise NotFound("the build has no such file")
    use.blobs.size(sha256)  # raises, if the file is gone
    headers = {"ETag": f'"{sha256}"', "Cache-Control": _FOR_EVER}
    return FileResponse(use.blobs.path(sha256), media_type="application/octet-stream", headers=headers)
