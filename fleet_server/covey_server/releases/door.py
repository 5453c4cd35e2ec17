"""`/tuf/…`: the repository of releases, read-only and without a login: what it says is signed, and secret is none of it.
`/api/v1/keys`: how its roles stand, for people."""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel

from covey_server.api.security import require
from covey_server.audit import Actor
from covey_server.errors import Forbidden, NotFound, Unauthorized, Unavailable
from covey_server.problems import responses
from covey_server.releases.policy import DIRECTOR
from covey_server.releases.releases import Releases
from covey_server.releases.shelf import Shelf
from covey_server.services import Services, Use

router = APIRouter(tags=["releases"])

_FOR_EVER = "public, max-age=31536000, immutable"
_ASK_AGAIN = "public, max-age=0, must-revalidate"


class SigningKey(BaseModel):
    """A key that is trusted: its name here, or its id. `at_hand`: whether this server can sign with it."""

    name: str
    at_hand: bool
    development: bool


class Role(BaseModel):
    """A role of the repository; a publisher's with its bins. `due`: to be signed anew; `alarm`: long overdue."""

    role: str
    version: int
    expires_ms: int
    threshold: int
    keys: list[SigningKey]
    due: bool
    alarm: bool
    expired: bool


class Keys(BaseModel):
    roles: list[Role]
    director: list[SigningKey]


def _releases(use: Services) -> Releases:
    if use.releases is None:
        raise Unavailable("this server has no repository of releases")
    return use.releases


def _shelf(use: Services) -> Shelf:
    return _releases(use).shelf


@router.get(
    "/api/v1/keys",
    summary="Who signs what, and until when it lasts",
    responses=responses(Unauthorized, Forbidden, Unavailable),
)
def get_keys(use: Use, _: Annotated[Actor, Depends(require("viewer"))]) -> Keys:
    releases = _releases(use)
    edition = releases.edition()

    def key(keyid: str) -> SigningKey:
        record = releases.keyring.record(keyid)
        if record is None:
            return SigningKey(name=keyid, at_hand=False, development=False)
        return SigningKey(name=record.name, at_hand=True, development=record.development)

    roles = [
        Role(
            role=row.role,
            version=row.version,
            expires_ms=int(row.expires.timestamp() * 1000),
            threshold=row.threshold,
            keys=[key(keyid) for keyid in edition.delegation(row.role)[0].keyids],
            due=row.due,
            alarm=row.alarm,
            expired=row.expired,
        )
        for row in releases.status()
    ]
    trusted = edition.root.signed.unrecognized_fields[DIRECTOR]["keys"]
    return Keys(roles=roles, director=[key(keyid) for keyid in sorted(trusted)])


@router.get(
    "/tuf/metadata/{name}",
    summary="A metadata file of the repository (TUF)",
    response_class=Response,
    responses=responses(NotFound, Unavailable),
)
def get_metadata(use: Use, request: Request, name: str) -> Response:
    caching = _ASK_AGAIN if name == "timestamp.json" else _FOR_EVER
    return _answer(request, _shelf(use).metadata(name), "application/json", caching)


@router.get(
    "/tuf/targets/{name:path}",
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
