"""Who did what, and whether the log of it is whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy import select

from covey_contract.audit_chain import Entry, Head
from covey_server import audit
from covey_server.api.paging import Limit, Page
from covey_server.api.security import require
from covey_server.audit import Actor
from covey_server.db.tables import AuditEntry
from covey_server.errors import Forbidden, Unauthorized
from covey_server.problems import responses
from covey_server.services import Services, Use

router = APIRouter(prefix="/api/v1", tags=["audit"], responses=responses(Unauthorized, Forbidden))

Viewer = Annotated[Actor, Depends(require("viewer"))]
Moment = Annotated[int | None, Query(ge=0, le=1 << 53, description="Unix time in milliseconds")]
EXPORT_TYPE = "application/x-ndjson"


class EntryView(BaseModel):
    id: int = Field(description="1, 2, 3 …, without gaps")
    at_ms: int
    who: str
    origin: str = Field(examples=["api 127.0.0.1"])
    action: str = Field(examples=["campaign.start"])
    object: str
    detail: dict[str, Any]
    previous_hash: str
    hash: str = Field(description="SHA-256 over the hash before and this entry")


class Verdict(BaseModel):
    whole: bool
    entries: int
    first_bad: int | None = Field(description="id of the first entry that was changed, removed or inserted")
    kind: Literal["changed", "removed", "inserted"] | None = None
    head: str = Field(description="hash of the last entry that is in order")


@router.get("/audit", summary="List the audit log, newest first")
def list_audit(
    use: Use,
    _: Viewer,
    limit: Limit = 100,
    before: Annotated[int | None, Query(ge=1, le=1 << 53, description="`next` of the page before")] = None,
    who: Annotated[str | None, Query(max_length=64)] = None,
    action: Annotated[
        str | None, Query(max_length=64, description="an action, or with a dot at its end all of a kind: `campaign.`")
    ] = None,
    object: Annotated[str | None, Query(max_length=256)] = None,  # noqa: A002 - as the entries call it
    since_ms: Moment = None,
    until_ms: Moment = None,
) -> Page[EntryView]:
    query = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit + 1)
    if before is not None:
        query = query.where(AuditEntry.id < before)
    if who is not None:
        query = query.where(AuditEntry.who == who)
    if action is not None:
        kind = AuditEntry.action.startswith(action, autoescape=True) if action.endswith(".") else None
        query = query.where(AuditEntry.action == action if kind is None else kind)
    if object is not None:
        query = query.where(AuditEntry.object == object)
    if since_ms is not None:
        query = query.where(AuditEntry.at_ms >= since_ms)
    if until_ms is not None:
        query = query.where(AuditEntry.at_ms < until_ms)
    with use.database.reading() as session:
        found = list(audit.entries(session, query))
    items = [EntryView(**asdict(one)) for one in found[:limit]]
    return Page(items=items, next=str(found[limit - 1].id) if len(found) > limit else None)


@router.get("/audit/verify", summary="Check the audit log's hash chain")
def verify_audit(
    use: Use,
    _: Viewer,
    head_id: Annotated[int | None, Query(ge=1, le=1 << 53, description="an entry of an earlier export")] = None,
    head_hash: Annotated[str, Query(pattern="^[0-9a-f]{64}$", description="its hash then")] = "0" * 64,
) -> Verdict:
    """Every entry is hashed anew. With the last entry of an earlier export it is also checked that the log still holds that."""
    anchors = () if head_id is None else (Head(head_id, head_hash),)
    with use.database.reading() as session:
        found = audit.verify(session, *anchors)
    return Verdict(
        whole=found.flaw is None,
        entries=found.entries,
        first_bad=None if found.flaw is None else found.flaw.id,
        kind=None if found.flaw is None else found.flaw.kind,
        head=found.head.hash,
    )


@router.get(
    "/audit/export",
    summary="All of the audit log, to be kept elsewhere",
    response_class=StreamingResponse,
    responses={200: {"content": {EXPORT_TYPE: {}}, "description": "one entry a line, the oldest first"}},
)
def export_audit(use: Use, _: Viewer) -> StreamingResponse:
    """`covey audit verify FILE` checks it without the server."""
    return StreamingResponse(_lines(use), media_type=EXPORT_TYPE)


def _lines(use: Services) -> Iterator[bytes]:
    with use.database.reading() as session:
        for entry in audit.entries(session):
            yield _line(entry)


def _line(entry: Entry) -> bytes:
    return json.dumps(asdict(entry), separators=(",", ":"), ensure_ascii=True).encode() + b"\n"
