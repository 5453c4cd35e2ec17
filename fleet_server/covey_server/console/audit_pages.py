"""The audit log: who did what, with filters, and the check of its chain."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import ColumnElement, func, select

from covey_server import audit
from covey_server.console import html, states
from covey_server.console.html import ConsoleRoute
from covey_server.console.live_pages import Viewer
from covey_server.db.tables import AuditEntry
from covey_server.errors import Invalid
from covey_server.services import Use

router = APIRouter(route_class=ConsoleRoute)

ENTRIES = 50
FILTERS = ("who", "kind", "object", "since", "until")
# Where an entry's thing has a page.
_PAGES = {"campaign": "/campaigns/", "device": "/devices/", "group": "/groups/", "build": "/builds/"}


@router.get("/audit")
def show(
    request: Request,
    use: Use,
    _: Viewer,
    before: Annotated[int | None, Query(ge=1, le=1 << 53)] = None,
    verify: bool = False,
) -> Response:
    given = {name: request.query_params.get(name, "").strip()[:256] for name in FILTERS}
    filters = {name: value for name, value in given.items() if value}
    conditions = _conditions(filters)
    query = select(AuditEntry).where(*conditions).order_by(AuditEntry.id.desc()).limit(ENTRIES + 1)
    if before is not None:
        query = query.where(AuditEntry.id < before)
    with use.database.reading() as session:
        found = session.scalars(query).all()
        total = session.scalar(select(func.count()).select_from(AuditEntry).where(*conditions)) or 0
        checked = audit.verify(session) if verify else None
    return html.page(
        request,
        "audit.html",
        now=use.clock(),
        entries=found[:ENTRIES],
        next=found[ENTRIES - 1].id if len(found) > ENTRIES else None,
        total=total,
        checked=checked,
        filters=filters,
        before=before,
        kinds=states.action_kinds(),
        page_of=page_of,
    )


def page_of(entry: Any) -> str:
    """The page of what an entry is about; empty if it has none."""
    kind = str(entry.action).partition(".")[0]
    return _PAGES[kind] + entry.object if kind in _PAGES and entry.object else ""


def _conditions(filters: dict[str, str]) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if who := filters.get("who"):
        found.append(AuditEntry.who == who)
    if kind := filters.get("kind"):
        found.append(AuditEntry.action.startswith(f"{kind}.", autoescape=True))
    if about := filters.get("object"):
        found.append(AuditEntry.object == about)
    if since := filters.get("since"):
        found.append(AuditEntry.at_ms >= _midnight_ms(since, "since"))
    if until := filters.get("until"):
        found.append(AuditEntry.at_ms < _midnight_ms(until, "until", days=1))
    return found


def _midnight_ms(text: str, field: str, days: int = 0) -> int:
    """The beginning of a day, in UTC. Raises `Invalid`."""
    try:
        day = date.fromisoformat(text) + timedelta(days=days)
    except (ValueError, OverflowError) as error:
        raise Invalid(f"{text[:20]!r} is not a date such as 2026-11-25", field=field) from error
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
