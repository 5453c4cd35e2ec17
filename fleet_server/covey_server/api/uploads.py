"""Large files, in pieces: tus 1.0 (https://tus.io/protocols/resumable-upload) with its extensions creation, expiration and termination.

A push then names its files by their uploads: `source_upload` instead of `source`, and so on. Beyond tus: a client that says the file's
SHA-256 (hex) in `Upload-Metadata` gets the upload that it began before, and the file is checked against it.
"""

from __future__ import annotations

import base64
import binascii
from email.utils import formatdate
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from covey_server.api.security import require
from covey_server.audit import Actor
from covey_server.errors import Conflict, Forbidden, Invalid, NotFound, ServerError, TooLarge, TooMany, Unauthorized
from covey_server.problems import responses
from covey_server.registry.uploads import Partial, Said, check_sha256
from covey_server.services import Use

PATH = "/api/v1/uploads"
VERSION = "1.0.0"
_EXTENSIONS = "creation,expiration,termination"
_PIECE = "application/offset+octet-stream"
_WRITE_BYTES = 1 << 20
_MAX_METADATA = 4096
_MAX_NAME = 128

router = APIRouter(prefix=PATH, tags=["models"], responses=responses(Unauthorized, Forbidden))

# Whoever may push may upload; an upload by itself changes nothing.
Pusher = Annotated[Actor, Depends(require("operator", checks_model=True))]
Spoken = Annotated[str, Header(alias="Tus-Resumable", max_length=16)]


class OtherVersion(ServerError):
    """The client speaks another version of tus."""

    status = 412
    title = "Precondition failed"
    code = "tus_version"


class WrongType(ServerError):
    """A piece of an upload has the content type application/offset+octet-stream."""

    status = 415
    title = "Unsupported media type"
    code = "media_type"


@router.options("", summary="What of tus this server speaks", status_code=204)
def show_tus(use: Use) -> Response:
    told = {"Tus-Version": VERSION, "Tus-Extension": _EXTENSIONS, "Tus-Max-Size": str(use.settings.upload_max_bytes)}
    return _answer(204, told)


@router.post(
    "",
    summary="Begin an upload",
    description="Headers of tus: `Upload-Length`; `Upload-Metadata` with `filename`, and `sha256` to find again what was begun before.",
    status_code=201,
    responses=responses(Invalid, TooLarge, TooMany, OtherVersion),
)
def begin_upload(
    use: Use,
    actor: Pusher,
    length: Annotated[str, Header(alias="Upload-Length", max_length=20)],
    metadata: Annotated[str, Header(alias="Upload-Metadata", max_length=_MAX_METADATA)] = "",
    spoken: Spoken = "",
) -> Response:
    _check_version(spoken)
    told = _metadata(metadata)
    name = told.get("filename", b"file").decode("utf-8", "replace")
    if not name.isprintable() or len(name) > _MAX_NAME:
        raise Invalid(
            f"the file's name is longer than {_MAX_NAME} characters or not printable", field="Upload-Metadata"
        )
    sha256 = check_sha256(told["sha256"].decode("ascii", "replace")) if "sha256" in told else ""
    said = Said(owner=actor.name, filename=name, size=_number(length, "Upload-Length"), sha256=sha256)
    found = use.uploads.create(said)
    return _answer(201, {"Location": f"{PATH}/{found.id}", **_state(found)})


@router.head("/{upload}", summary="How far an upload has come", responses=responses(NotFound, OtherVersion))
def show_upload(use: Use, upload: str, actor: Pusher, spoken: Spoken = "") -> Response:
    _check_version(spoken)
    found = use.uploads.get(upload, actor.name)
    return _answer(200, {**_state(found), "Upload-Length": str(found.said.size)})


@router.patch(
    "/{upload}",
    summary="Go on with an upload",
    description="The bytes from `Upload-Offset` on, as many as you like. Those that came stay, also when the connection breaks.",
    status_code=204,
    responses=responses(NotFound, Conflict, TooLarge, OtherVersion, WrongType),
    openapi_extra={
        "requestBody": {"required": True, "content": {_PIECE: {"schema": {"type": "string", "format": "binary"}}}}
    },
)
async def go_on(
    request: Request,
    use: Use,
    upload: str,
    actor: Pusher,
    offset: Annotated[str, Header(alias="Upload-Offset", max_length=20)],
    spoken: Spoken = "",
) -> Response:
    _check_version(spoken)
    if request.headers.get("content-type", "").partition(";")[0].strip() != _PIECE:
        raise WrongType
    writer = await run_in_threadpool(use.uploads.go_on, upload, actor.name, _number(offset, "Upload-Offset"))
    with writer:
        pending = bytearray()
        try:
            async for chunk in request.stream():
                pending += chunk
                if len(pending) >= _WRITE_BYTES:
                    await run_in_threadpool(writer.write, bytes(pending))
                    pending.clear()
        except ClientDisconnect:
            await run_in_threadpool(writer.write, bytes(pending))  # what came is not to come again
            raise
        await run_in_threadpool(writer.write, bytes(pending))
    return _answer(204, _state(use.uploads.get(upload, actor.name)))


@router.delete("/{upload}", summary="Forget an upload", status_code=204, responses=responses(NotFound, OtherVersion))
def forget_upload(use: Use, upload: str, actor: Pusher, spoken: Spoken = "") -> Response:
    _check_version(spoken)
    use.uploads.remove(upload, actor.name)
    return _answer(204, {})


def _state(found: Partial) -> dict[str, str]:
    return {"Upload-Offset": str(found.offset), "Upload-Expires": formatdate(found.expires_s, usegmt=True)}


def _answer(status: int, headers: dict[str, str]) -> Response:
    return Response(status_code=status, headers={"Tus-Resumable": VERSION, **headers})


def _check_version(spoken: str) -> None:
    """Without the header it is taken for a person with curl."""
    if spoken and spoken != VERSION:
        raise OtherVersion(f"this server speaks tus {VERSION}")


def _number(text: str, field: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise Invalid(f"{field} is not a number of bytes", field=field)
    return int(text)


def _metadata(text: str) -> dict[str, bytes]:
    """`KEY BASE64,KEY BASE64 …`, as tus has it."""
    found: dict[str, bytes] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, _, value = part.partition(" ")
        try:
            found[key] = base64.b64decode(value.strip(), validate=True)
        except (binascii.Error, ValueError) as error:
            raise Invalid(f"{key[:40]!r} is not base64", field="Upload-Metadata") from error
    return found
