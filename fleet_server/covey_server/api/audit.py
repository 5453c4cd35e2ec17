"""Who did what, and whether the log of it is whole."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field
from sqlalchemy import func, select

from covey_server import audit
from covey_server.api.paging import Limit, Page
from covey_server.api.security import require
from covey_server.audit import Actor
from covey_server.db.tables import AuditEntry
from covey_server.errors import Forbidden, Unauthorized
from covey_server.problems import responses
from covey_server.services import Use

router = APIRouter(prefix="/api/v1", tags=["audit"], responses=responses(Unauthorized, Forbidden))


class EntryView(BaseModel):
    id: int
    at_ms: int
    who: str
    origin: str = Field(examples=["api 127.0.0.1"])
    action: str = Field(examples=["campaign.start"])
    object: str
    detail: dict[str, Any]
    hash: str = Field(description="SHA-256 over the hash before and this entry")


class Verdict(BaseModel):
    whole: bool
    entries: int
    first_bad: int | None = Field(description="id of the first entry that does not follow from the one before")


@router.get("/audit", summary="List the audit log, newest first")
def list_audit(
    use: Use,
    _: Annotated[Actor, Depends(require("viewer"))],
    limit: Limit = 100,
    before: Annotated[int | None, Query(ge=1, le=1 << 53, description="`next` of the page before")] = None,
) -> Page[EntryView]:
    query = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit + 1)
    if before is not None:
        query = query.where(AuditEntry.id < before)
    with use.database.reading() as session:
        found = session.scalars(query).all()
    items = [
        EntryView(
            id=one.id,
            at_ms=one.at_ms,
            who=one.who,
            origin=one.origin,
            action=one.action,
            object=one.object,
            detail=one.detail,
            hash=one.hash,
        )
        for one in found[:limit]
    ]
    return Page(items=items, next=str(found[limit - 1].id) if len(found) > limit else None)


@router.get("/audit/verify", summary="Check the audit log's hash chain")
def verify_audit(use: Use, _: Annotated[Actor, Depends(require("viewer"))]) -> Verdict:
    with use.database.reading() as session:
        bad = audit.verify(session)
        entries = session.scalar(select(func.count()).select_from(AuditEntry)) or 0
    return Verdict(whole=bad is None, entries=entries, first_bad=bad)
