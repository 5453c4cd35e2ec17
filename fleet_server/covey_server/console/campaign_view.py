"""Campaigns: what one campaign's page shows beside the service's own view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from covey_server.campaigns import views
from covey_server.campaigns.device_views import CampaignDeviceView, list_devices
from covey_server.campaigns.repository import progress_of
from covey_server.campaigns.views import CampaignView
from covey_server.console import campaign_chart
from covey_server.core.engine import Action, RefusedError, command
from covey_server.db.tables import Campaign, CampaignEvent

DEVICES = 30
EVENTS = 40


@dataclass(frozen=True)
class CampaignPage:
    campaign: CampaignView
    actions: frozenset[str]
    devices: list[CampaignDeviceView]
    next: str | None
    events: list[CampaignEvent]
    chart: dict[str, Any]


def campaign(
    session: Session,
    name: str,
    now_ms: int,
    *,
    state: str | None = None,
    stage: str | None = None,
    drifted: bool = False,
    after: str = "",
) -> CampaignPage:
    """Raises `NotFound`."""
    view = views.show(session, name, now_ms)
    row = session.scalars(select(Campaign).where(Campaign.name == name)).one()
    devices, following = list_devices(session, name, DEVICES, after, state, stage=stage, drifted=drifted)
    events = session.scalars(
        select(CampaignEvent).where(CampaignEvent.campaign_id == row.id).order_by(CampaignEvent.id.desc()).limit(EVENTS)
    ).all()
    return CampaignPage(
        view,
        allowed(session, row, now_ms),
        devices,
        following,
        list(events),
        campaign_chart.draw(session, row, view, now_ms),
    )


def allowed(session: Session, row: Campaign, now_ms: int) -> frozenset[str]:
    """What may be told to the campaign now; the engine itself is asked."""
    progress = progress_of(session, row)
    found = set()
    for action in Action:
        try:
            if command(progress, action, "", now_ms=now_ms) and not (
                action is Action.SKIP_SOAK and progress.soak_skipped
            ):
                found.add(action.value)
        except RefusedError:
            continue
    return frozenset(found)
