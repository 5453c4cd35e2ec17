"""Reading a campaign from the database: its progress, the counts of its devices, the evidence for its gates.

All of it is a fixed number of set-based statements, whatever the number of devices, on SQLite and on PostgreSQL. What devices
report comes in by `covey_server.campaigns.following`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import case, exists, func, select
from sqlalchemy.orm import Session, aliased

from covey_server.core.engine import ACTIVE, CampaignState, DeviceState, Progress, RestoreCounts, StageCounts
from covey_server.core.part import ROLLBACK
from covey_server.core.spec import CampaignSpec, spec_from_json
from covey_server.db.tables import Campaign, CampaignDevice, CampaignEvent

# A device that is off holds up its stage for this long after its last word (a broker that restarts makes all look off),
# and a campaign that goes back for this long.
HOLDS_STAGE_MS = 10_000
HOLDS_RETURN_MS = 30_000

SOAK_SKIPPED = "soak_skipped"
BREACH_ACCEPTED = "breach_accepted"

_ACTIVE = sorted(state.value for state in ACTIVE)
_DECIDES = sorted(state.value for state in (CampaignState.RUNNING, CampaignState.PAUSED, CampaignState.ROLLING_BACK))


@dataclass(frozen=True)
class Counts:
    """`settled_ms`: of each stage, when its last device became active; `restored_ms`: when the last one was back."""

    stages: tuple[StageCounts, ...]
    restore: RestoreCounts
    settled_ms: tuple[int | None, ...]
    restored_ms: int | None


def progress_of(session: Session, campaign: Campaign) -> Progress:
    """The campaign as the engine sees it. What people said to it is read from its log."""
    said = session.execute(
        select(CampaignEvent.kind, CampaignEvent.detail).where(
            CampaignEvent.campaign_id == campaign.id, CampaignEvent.kind.in_((SOAK_SKIPPED, BREACH_ACCEPTED))
        )
    ).all()
    return Progress(
        spec=spec_of(campaign),
        state=CampaignState(campaign.state),
        stage=campaign.stage,
        stage_started=campaign.stage_started_ms is not None,
        soak_skipped=any(kind == SOAK_SKIPPED and detail["stage"] == campaign.stage for kind, detail in said),
        accepted=frozenset((detail["stage"], detail["gate"]) for kind, detail in said if kind == BREACH_ACCEPTED),
    )


def spec_of(campaign: Campaign) -> CampaignSpec:
    return spec_from_json(campaign.spec)


# --- counting -----------------------------------------------------------------------------------------------------


def count(session: Session, campaign: Campaign, stages: int, now_ms: int) -> Counts:
    """The devices of each of the campaign's stages by what they are at: one walk through the covering index."""
    part = CampaignDevice
    by = (part.state, part.stage, part.order_kind, part.heard, part.served)
    rows = session.execute(
        select(
            *by,
            func.count(),
            func.sum(case((part.off_since_ms < now_ms - HOLDS_STAGE_MS, 1), else_=0)),
            func.sum(case((part.off_since_ms < now_ms - HOLDS_RETURN_MS, 1), else_=0)),
            func.max(part.active_ms),
            func.max(part.restored_ms),
        )
        .where(part.campaign_id == campaign.id)
        .group_by(*by)
    )
    tallies: list[Counter[str]] = [Counter() for _ in range(stages)]
    restore: Counter[str] = Counter()
    settled: list[int | None] = [None] * stages
    restored: list[int] = []
    for state, stage, order_kind, heard, _served, number, away, long_away, active_ms, restored_ms in rows:
        if stage < 0:
            continue
        tally, away, long_away = tallies[stage], int(away), int(long_away)
        match DeviceState(state):
            case DeviceState.PLANNED:
                tally["planned"] += number
            case DeviceState.ASSIGNED:
                tally["away"] += away
                tally["busy" if heard else "silent"] += number - away
                restore["to_order"] += number
            case DeviceState.ACTIVE:
                tally["active"] += number
                settled[stage] = max(settled[stage] or 0, active_ms or 0)
                (tally if order_kind is None else restore)["already" if order_kind is None else "to_order"] += number
            case DeviceState.FAILED:
                tally["failed"] += number
                restore["failed" if order_kind == ROLLBACK else "to_order"] += number
            case DeviceState.ROLLING_BACK:
                restore["restoring"] += number - long_away
                restore["away"] += long_away
            case DeviceState.ROLLED_BACK | DeviceState.RESTORED_LOCALLY:
                restore["restored"] += number
                restored.append(restored_ms or 0)
            case DeviceState.SKIPPED:
                pass
    return Counts(
        tuple(StageCounts(**dict(tally)) for tally in tallies),
        RestoreCounts(**dict(restore)),
        tuple(settled),
        max(restored, default=None),
    )


def deciding_campaigns(session: Session) -> list[int]:
    """Those that the engine has something to decide on."""
    return list(session.scalars(select(Campaign.id).where(Campaign.state.in_(_DECIDES)).order_by(Campaign.id)))


def names_of(session: Session, ids: Collection[int]) -> list[str]:
    return list(session.scalars(select(Campaign.name).where(Campaign.id.in_(ids)))) if ids else []


def rivals(session: Session, campaign: Campaign) -> list[str]:
    """Active campaigns of the same model that share a device with this one."""
    mine, theirs = aliased(CampaignDevice), aliased(CampaignDevice)
    shared = exists().where(
        theirs.campaign_id == Campaign.id,
        mine.campaign_id == campaign.id,
        mine.device == theirs.device,
        mine.state != DeviceState.SKIPPED.value,
        theirs.state != DeviceState.SKIPPED.value,
    )
    return list(
        session.scalars(
            select(Campaign.name)
            .where(
                Campaign.id != campaign.id,
                Campaign.model == campaign.model,
                Campaign.state.in_(_ACTIVE),
                shared,
            )
            .order_by(Campaign.name)
        )
    )


def halt_to_restored_s(campaign: Campaign, restored_ms: int | None) -> float | None:
    """Seconds from the halt to the last device restored; None if no device is, or nothing was halted."""
    if restored_ms is None or campaign.halted_ms is None:
        return None
    return max(restored_ms - campaign.halted_ms, 0) / 1000
