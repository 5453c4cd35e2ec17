"""The curves of a campaign: latency of the new version, of the builds it takes the place of on the same devices before, and of
the devices beside them that still run those builds, by the quantile that the gate judges."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from covey_server.campaigns.views import CampaignView
from covey_server.console import latency
from covey_server.console.i18n import gettext as _
from covey_server.console.latency import Curve
from covey_server.core.engine import DeviceState
from covey_server.db.tables import Build, Campaign, CampaignDevice, Version

# What is shown before the campaign and after its end: as much as it took, within these; and of how many devices.
LEAST_AROUND_MS = 20_000
MOST_AROUND_MS = 300_000
DEVICES = 50
WINDOWS = 4000


def draw(session: Session, row: Campaign, view: CampaignView, now_ms: int) -> dict[str, Any]:
    """As `latency.Chart.to_json`, with how many `devices` were reached and are in it, and how many `controls`."""
    parts = session.execute(
        select(CampaignDevice.device, CampaignDevice.build_id, CampaignDevice.previous_build_id)
        .where(CampaignDevice.campaign_id == row.id, CampaignDevice.assigned_ms.is_not(None))
        .order_by(CampaignDevice.stage, CampaignDevice.device)
        .limit(DEVICES)
    ).all()
    reached = frozenset(part[0] for part in parts)
    new = {part[1] for part in parts if part[1] is not None}
    before = {part[2] for part in parts if part[2] is not None} - new
    digests = _digests(session, new | before)
    old = frozenset(digests[one] for one in before if one in digests)
    beside = _beside(session, row) if old else frozenset()
    took = (row.finished_ms or now_ms) - (row.started_ms or now_ms)
    around = min(max(took, LEAST_AROUND_MS), MOST_AROUND_MS)
    found = latency.windows(
        session,
        builds=sorted(digests.values()),
        devices=sorted(reached | beside),
        since_ms=(row.started_ms or now_ms) - around,
        until_ms=None if row.finished_ms is None else row.finished_ms + around,
        limit=WINDOWS,
    )
    controls = frozenset(one.device for one in found if one.device in beside)
    earlier = _names(session, before)
    curves = [
        Curve(_("before: %(versions)s") % {"versions": earlier} if earlier else _("before"), old, reached),
        Curve(
            _("new: %(version)s") % {"version": f"{view.model} {view.version}"},
            frozenset(digests[one] for one in new if one in digests),
            reached,
        ),
    ]
    if controls:
        curves.append(Curve(_("beside them, not reached"), old, beside))
    chart = latency.chart(found, curves, row.name, quantile=_quantile(view))
    chart.marks += _moments(session, row)
    return {**chart.to_json(), "devices": len(parts), "controls": len(controls)}


def _beside(session: Session, row: Campaign) -> frozenset[str]:
    """Devices of the campaign that have had no order of it."""
    waiting = (
        select(CampaignDevice.device)
        .where(
            CampaignDevice.campaign_id == row.id,
            CampaignDevice.state == DeviceState.PLANNED.value,
            CampaignDevice.stage >= 0,
        )
        .order_by(CampaignDevice.device)
        .limit(DEVICES)
    )
    return frozenset(session.scalars(waiting))


def _digests(session: Session, builds: set[int]) -> dict[int, str]:
    rows = session.execute(select(Build.id, Build.digest).where(Build.id.in_(builds), Build.digest.is_not(None)))
    return {found_id: digest for found_id, digest in rows if digest is not None}


def _names(session: Session, builds: set[int]) -> str:
    """The versions of these builds, in words."""
    rows = session.execute(
        select(Version.model, Version.name)
        .join(Build, Build.version_id == Version.id)
        .where(Build.id.in_(builds))
        .distinct()
        .limit(4)
    ).all()
    return ", ".join(f"{model} {name}" for model, name in rows)


def _moments(session: Session, row: Campaign) -> list[dict[str, Any]]:
    moments = [(row.started_ms, _("started")), (row.halted_ms, _("halted"))]
    if row.state == "rolled_back":
        last = select(func.max(CampaignDevice.restored_ms)).where(CampaignDevice.campaign_id == row.id)
        moments.append((session.scalar(last), _("restored")))
    return [{"t": at_ms / 1000, "text": text} for at_ms, text in moments if at_ms is not None]


def _quantile(view: CampaignView) -> float:
    gates = [view.verdict] if view.verdict is not None else view.gates
    return float(next((gate["quantile"] for gate in gates if gate.get("quantile")), 0.99))
