"""Campaigns: what one campaign's page shows beside the service's own view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from covey_server.campaigns import views
from covey_server.campaigns.repository import progress_of
from covey_server.campaigns.views import CampaignDeviceView, CampaignView
from covey_server.console import latency
from covey_server.core.engine import Action, RefusedError, command
from covey_server.db.tables import Build, Campaign, CampaignDevice, CampaignEvent

DEVICES = 30
EVENTS = 40
BEFORE_MS = 5 * 60_000
MAX_BUILDS = 40


@dataclass(frozen=True)
class CampaignPage:
    campaign: CampaignView
    actions: frozenset[str]
    devices: list[CampaignDeviceView]
    next: str | None
    events: list[CampaignEvent]
    chart: dict[str, Any]


def campaign(session: Session, name: str, now_ms: int, *, state: str | None = None, after: str = "") -> CampaignPage:
    """Raises `NotFound`."""
    view = views.show(session, name, now_ms)
    row = session.scalars(select(Campaign).where(Campaign.name == name)).one()
    devices, following = views.list_devices(session, name, DEVICES, after, state)
    events = session.scalars(
        select(CampaignEvent).where(CampaignEvent.campaign_id == row.id).order_by(CampaignEvent.id.desc()).limit(EVENTS)
    ).all()
    return CampaignPage(view, allowed(session, row), devices, following, list(events), _chart(session, row, now_ms))


def allowed(session: Session, row: Campaign) -> frozenset[str]:
    """What may be told to the campaign now; the engine itself is asked."""
    progress = progress_of(session, row)
    found = set()
    for action in Action:
        try:
            if command(progress, action, "") and not (action is Action.SKIP_SOAK and progress.soak_skipped):
                found.add(action.value)
        except RefusedError:
            continue
    return frozenset(found)


def _chart(session: Session, row: Campaign, now_ms: int) -> dict[str, Any]:
    """The new version's latency against that of the builds it takes the place of, on all devices that serve them."""
    pairs = session.execute(
        select(CampaignDevice.build_id, CampaignDevice.previous_build_id)
        .where(CampaignDevice.campaign_id == row.id)
        .distinct()
        .limit(MAX_BUILDS)
    ).all()
    new = {pair[0] for pair in pairs if pair[0] is not None}
    before = {pair[1] for pair in pairs if pair[1] is not None} - new
    digests: dict[int, str] = {
        found_id: digest
        for found_id, digest in session.execute(
            select(Build.id, Build.digest).where(Build.id.in_(new | before), Build.digest.is_not(None))
        )
        if digest is not None
    }
    since = (row.started_ms or now_ms) - BEFORE_MS
    found = latency.windows(session, builds=sorted(digests.values()), since_ms=since)
    groups = [
        ("before", frozenset(digests[one] for one in before if one in digests)),
        ("this version", frozenset(digests[one] for one in new if one in digests)),
    ]
    chart = latency.chart(found, groups, f"Latency in {row.name}")
    for at_ms, text in ((row.started_ms, "started"), (row.halted_ms, "halted")):
        if at_ms is not None:
            chart.marks.append({"t": at_ms / 1000, "text": text})
    return chart.to_json()
