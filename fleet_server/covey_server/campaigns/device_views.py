"""The devices of a campaign as people and programs see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session, aliased

from covey_server.campaigns.repository import by_name, spec_of
from covey_server.core.engine import DeviceState
from covey_server.db.tables import (
    Build,
    Campaign,
    CampaignChoice,
    CampaignDevice,
    Device,
    Reported,
    Version,
)
from covey_server.errors import NotFound


@dataclass(frozen=True)
class BuildName:
    id: int
    version: str
    target: str
    digest: str | None


@dataclass(frozen=True)
class CampaignDeviceView:
    """A device's part. `stage` is None for one that is left out; `detail` says why. `progress` is its part in words: not_reached,
    in_progress, waiting, unknown, served, unserved, failed, retrying, going_back, back, left_out; `due_ms`: when it is tried again."""

    device: str
    profile: str | None
    simulated: bool
    online: bool
    stage: int | None
    stage_name: str | None
    state: str
    progress: str
    attempts: int
    due_ms: int | None
    drifted_ms: int | None
    runs: str | None  # the digest of the build that it says it runs
    build: BuildName | None
    previous: BuildName | None
    assignment: str | None
    reason: str
    detail: str
    why: dict[str, Any]
    assigned_ms: int | None
    active_ms: int | None
    restored_ms: int | None


def list_devices(
    session: Session,
    name: str,
    limit: int,
    after: str = "",
    state: str | None = None,
    *,
    stage: str | None = None,
    drifted: bool = False,
) -> tuple[list[CampaignDeviceView], str | None]:
    """The devices of a campaign by id, and the cursor for those that follow. Raises `NotFound`, also for a stage that it does not
    have."""
    campaign = by_name(session, name)
    stages = [stage.name for stage in spec_of(campaign).stages]
    new, previous = aliased(Build), aliased(Build)
    new_version, previous_version = aliased(Version), aliased(Version)
    query = (
        select(CampaignDevice, Device.profile, Device.simulated, Device.online, new, new_version.name, previous)
        .add_columns(previous_version.name, CampaignChoice.why, Reported.active)
        .join(Device, Device.id == CampaignDevice.device)
        .outerjoin(new, new.id == CampaignDevice.build_id)
        .outerjoin(new_version, new_version.id == new.version_id)
        .outerjoin(previous, previous.id == CampaignDevice.previous_build_id)
        .outerjoin(previous_version, previous_version.id == previous.version_id)
        .outerjoin(
            CampaignChoice,
            (CampaignChoice.campaign_id == CampaignDevice.campaign_id)
            & (CampaignChoice.number == CampaignDevice.choice),
        )
        .outerjoin(Reported, (Reported.device == CampaignDevice.device) & (Reported.model == campaign.model))
        .where(CampaignDevice.campaign_id == campaign.id, CampaignDevice.device > after)
        .order_by(CampaignDevice.device)
        .limit(limit + 1)
    )
    if state is not None:
        query = query.where(CampaignDevice.state == state)
    if stage is not None:
        if stage not in stages:
            raise NotFound(f"campaign {name} has no stage {stage}")
        query = query.where(CampaignDevice.stage == stages.index(stage))
    if drifted:
        query = query.where(*has_drifted(campaign))
    rows = session.execute(query).all()
    items = [
        CampaignDeviceView(
            device=part.device,
            profile=profile,
            simulated=simulated,
            online=online,
            stage=part.stage if part.stage >= 0 else None,
            stage_name=stages[part.stage] if part.stage >= 0 else None,
            state=part.state,
            progress=_part_progress(part),
            attempts=part.attempts,
            due_ms=part.due_ms if part.state == DeviceState.RETRYING.value else None,
            drifted_ms=part.drifted_ms,
            runs=runs,
            build=_build_name(build, version),
            previous=_build_name(before, before_version),
            assignment=part.assignment,
            reason=part.reason,
            detail=part.detail,
            why=why or {},
            assigned_ms=part.assigned_ms,
            active_ms=part.active_ms,
            restored_ms=part.restored_ms,
        )
        for part, profile, simulated, online, build, version, before, before_version, why, runs in rows[:limit]
    ]
    return items, items[-1].device if len(rows) > limit else None


def has_drifted(campaign: Campaign) -> tuple[ColumnElement[bool], ...]:
    return (CampaignDevice.campaign_id == campaign.id, CampaignDevice.drifted_ms.is_not(None))


def _part_progress(part: CampaignDevice) -> str:
    match DeviceState(part.state):
        case DeviceState.PLANNED:
            return "not_reached"
        case DeviceState.ASSIGNED if part.off_since_ms is not None:
            return "unknown" if part.heard else "not_reached"
        case DeviceState.ASSIGNED:
            return "waiting" if part.waiting else "in_progress"
        case DeviceState.ACTIVE:
            return "served" if part.served or part.order_kind is None else "unserved"
        case DeviceState.FAILED | DeviceState.RETRYING:
            return part.state
        case DeviceState.ROLLING_BACK:
            return "going_back"
        case DeviceState.ROLLED_BACK | DeviceState.RESTORED_LOCALLY:
            return "back"
        case DeviceState.SKIPPED:
            return "left_out"


def _build_name(build: Build | None, version: str | None) -> BuildName | None:
    return None if build is None else BuildName(build.id, version or "", build.target, build.digest)
