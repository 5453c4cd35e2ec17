"""`/tuf/…`: the repository of releases, read-only and without a login: what it says is signed, and secret is none of it."""

from __future__ import annotations

import hashlib

from fastapi import APIRouter, Request, Response

from covey_server.errors import NotFound, Unavailable
from covey_server.problems import responses
from covey_server.releases.shelf import Shelf
from covey_server.services import Services, Use

router = APIRouter(prefix="/tuf", tags=["releases"])

_FOR_EVER = "public, max-age=31536000, immutable"
_ASK_AGAIN = "public, max-age=0, must-revalidate"


def _shelf(use: Services) -> Shelf:
    if use.releases is None:
        raise Unavailable("this server has no repository of releases")
    return use.releases.shelf


@router.get(
    "/metadata/{name}",
    summary="A metadata file of the repository (TUF)",
    response_class=Response,
    responses=responses(NotFound, Unavailable),
)
def get_metadata(use: Use, request: Request, name: str) -> Response:
    caching = _ASK_AGAIN if name == "timestamp.json" else _FOR_EVER
    return _answer(request, _shelf(use).metadata(name), "application/json", caching)


@router.get(
    "/targets/{name:path}",
    summary="A target of the repository: a build's manifest, by its path with its SHA-256",
    response_class=Response,
    responses=responses(NotFound, Unavailable),
)
def get_target(use: Use, request: Request, name: str) -> Response:
    return _answer(request, _shelf(use).target(name), "application/octet-stream", _FOR_EVER)


def _answer(request: Request, data: bytes, media_type: str, caching: str) -> Response:
    headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()[:32]}"', "Cache-Control": caching}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=media_type, headers=headers)
