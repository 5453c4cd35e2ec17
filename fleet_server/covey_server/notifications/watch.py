"""What is to be told although no line of a campaign's log says it: that an approval is waited for, and that a device has failed
so often that further campaigns leave it out."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from covey_server.campaigns.target import is_quarantined
from covey_server.core.spec import Quarantine
from covey_server.db.tables import Campaign, CampaignDevice, CampaignEvent, Device, Notice, Version
from covey_server.notifications.outbox import tell

_MAX_DEVICES = 100
_ENDED = ("done", "rolled_back", "failed", "aborted", "halted")


def tell_of_approvals(session: Session, now_ms: int) -> int:
    """Notices of campaigns and stages that wait for an approval, once each; how many were made."""
    waiting = select(Campaign, Version.name).join(Version, Version.id == Campaign.version_id)
    rows = session.execute(
        waiting.where(
            Campaign.state.in_(("planned", "queued", "running", "paused")), Campaign.waiting_for.contains("approval")
        )
    ).all()
    made = 0
    for campaign, version in rows:
        begun = campaign.started_ms is not None
        stage = _stage(campaign.spec, campaign.stage) if begun else None
        what = campaign.name if stage is None else f"stage {stage} of {campaign.name}"
        data = {"campaign": campaign.name, "model": campaign.model, "version": version, "who": campaign.created_by}
        source = f"approval {campaign.id} {campaign.stage if begun else 'start'}"
        words = f"{what} ({campaign.model} {version}, by {campaign.created_by}) waits for approval"
        made += tell(
            session, "campaign.approval_wanted", words, data | ({"stage": stage} if stage else {}), source, now_ms
        )
    return made


def tell_of_quarantine(session: Session, after_event: int, now_ms: int) -> int:
    """Notices of devices that failed in a campaign which has ended since the line `after_event`, and have failed so often by
    that that further ones leave them out; how many were made."""
    events = select(CampaignEvent.campaign_id).where(CampaignEvent.id > after_event, CampaignEvent.kind.in_(_ENDED))
    ended = session.execute(
        select(Campaign.id, Campaign.name, Campaign.model, Campaign.spec).where(Campaign.id.in_(events))
    ).all()
    made = 0
    for number, name, model, spec in ended:
        failures = int((spec.get("quarantine") or {}).get("failures", Quarantine().failures))
        if not failures:
            continue
        failed = session.scalars(
            select(Device.id)
            .join(CampaignDevice, CampaignDevice.device == Device.id)
            .where(CampaignDevice.campaign_id == number, is_quarantined(model, failures))
            .where(CampaignDevice.assigned_ms.is_not(None))
            .order_by(Device.id)
            .limit(_MAX_DEVICES)
        ).all()
        for device in failed:
            words = f"{device} is quarantined: it failed in {failures} campaigns of {model} one after the other"
            data = {"device": device, "model": model, "campaign": name}
            made += tell(session, "device.quarantined", words, data, f"quarantine {number} {device}", now_ms)
    return made


def has_approvals(session: Session) -> bool:
    """Whether some campaign waits for an approval that was not told yet; a cheap look."""
    waiting = session.execute(
        select(Campaign.id, Campaign.stage, Campaign.started_ms).where(
            Campaign.state.in_(("planned", "queued", "running", "paused")), Campaign.waiting_for.contains("approval")
        )
    ).all()
    sources = {f"approval {row.id} {row.stage if row.started_ms is not None else 'start'}" for row in waiting}
    told = session.scalars(select(Notice.source).where(Notice.source.in_(sources))).all() if sources else []
    return len(sources) > len(told)


def _stage(spec: dict[str, Any], index: int) -> str | None:
    stages = spec.get("stages") or []
    return str(stages[index].get("name")) if 0 <= index < len(stages) else None
