"""Campaigns: what one campaign's page shows beside the service's own view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from covey_server.campaigns import views
from covey_server.campaigns.repository import progress_of
from covey_server.campaigns.views import CampaignDeviceView, CampaignView
from covey_server.console import latency
from covey_server.core.engine import Action, RefusedError, command
from covey_server.db.tables import Build, Campaign, CampaignDevice, CampaignEvent, Version

DEVICES = 30
EVENTS = 40
# What the chart shows before the campaign and after its end: as much as it took, within these; and of how many devices.
LEAST_AROUND_MS = 20_000
MOST_AROUND_MS = 300_000
CHART_DEVICES = 50
CHART_WINDOWS = 4000


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
    return CampaignPage(
        view, allowed(session, row), devices, following, list(events), _chart(session, row, view, now_ms)
    )


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


def _chart(session: Session, row: Campaign, view: CampaignView, now_ms: int) -> dict[str, Any]:
    """The new version's latency against that of the builds it takes the place of, on the devices that were reached, by the
    quantile that the gate judges."""
    parts = session.execute(
        select(CampaignDevice.device, CampaignDevice.build_id, CampaignDevice.previous_build_id)
        .where(CampaignDevice.campaign_id == row.id, CampaignDevice.assigned_ms.is_not(None))
        .order_by(CampaignDevice.stage, CampaignDevice.device)
        .limit(CHART_DEVICES)
    ).all()
    new = {part[1] for part in parts if part[1] is not None}
    before = {part[2] for part in parts if part[2] is not None} - new
    digests: dict[int, str] = {
        found_id: digest
        for found_id, digest in session.execute(
            select(Build.id, Build.digest).where(Build.id.in_(new | before), Build.digest.is_not(None))
        )
        if digest is not None
    }
    took = (row.finished_ms or now_ms) - (row.started_ms or now_ms)
    around = min(max(took, LEAST_AROUND_MS), MOST_AROUND_MS)
    found = latency.windows(
        session,
        builds=sorted(digests.values()),
        devices=[part[0] for part in parts],
        since_ms=(row.started_ms or now_ms) - around,
        until_ms=None if row.finished_ms is None else row.finished_ms + around,
        limit=CHART_WINDOWS,
    )
    earlier = _earlier(session, before)
    groups = [
        (f"before: {earlier}" if earlier else "before", frozenset(digests[one] for one in before if one in digests)),
        (f"new: {view.model} {view.version}", frozenset(digests[one] for one in new if one in digests)),
    ]
    chart = latency.chart(found, groups, f"Latency in {row.name}", quantile=_quantile(view))
    restored = session.scalar(select(func.max(CampaignDevice.restored_ms)).where(CampaignDevice.campaign_id == row.id))
    moments = [(row.started_ms, "started"), (row.halted_ms, "halted")]
    if row.state == "rolled_back":
        moments.append((restored, "restored"))
    for at_ms, text in moments:
        if at_ms is not None:
            chart.marks.append({"t": at_ms / 1000, "text": text})
    return {**chart.to_json(), "devices": len(parts)}


def _earlier(session: Session, builds: set[int]) -> str:
    """The versions of these builds, in words."""
    rows = session.execute(
        select(Version.model, Version.name)
        .join(Build, Build.version_id == Version.id)
        .where(Build.id.in_(builds))
        .distinct()
        .limit(4)
    ).all()
    return ", ".join(f"{model} {name}" for model, name in rows)


def _quantile(view: CampaignView) -> float:
    gates = [view.verdict] if view.verdict is not None else view.gates
    return float(next((gate["quantile"] for gate in gates if gate.get("quantile")), 0.99))
