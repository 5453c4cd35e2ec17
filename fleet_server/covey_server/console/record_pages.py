"""Groups, and the audit log with the check of its chain."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import func, select

from covey_server import audit
from covey_server.console import html
from covey_server.console.fleet_pages import Viewer
from covey_server.console.html import ConsoleRoute
from covey_server.db.tables import AuditEntry
from covey_server.fleet import groups
from covey_server.services import Use

router = APIRouter(route_class=ConsoleRoute)

GROUPS = 100
ENTRIES = 50


@router.get("/groups")
def show_groups(request: Request, use: Use, _: Viewer) -> Response:
    with use.database.reading() as session:
        names = groups.names(session)
        shown = [groups.describe(session, name) for name in names[:GROUPS]]
    return html.page(request, "groups.html", now=use.clock(), groups=shown, more=len(names) - len(shown))


@router.get("/audit")
def show_audit(
    request: Request,
    use: Use,
    _: Viewer,
    before: Annotated[int | None, Query(ge=1, le=1 << 53)] = None,
    verify: bool = False,
) -> Response:
    query = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(ENTRIES + 1)
    if before is not None:
        query = query.where(AuditEntry.id < before)
    with use.database.reading() as session:
        found = session.scalars(query).all()
        total = session.scalar(select(func.count()).select_from(AuditEntry)) or 0
        flaw = audit.verify(session).flaw if verify else None
    following = found[ENTRIES - 1].id if len(found) > ENTRIES else None
    return html.page(
        request,
        "audit.html",
        now=use.clock(),
        entries=found[:ENTRIES],
        next=following,
        total=total,
        verified=verify,
        first_bad=None if flaw is None else flaw.id,
    )
