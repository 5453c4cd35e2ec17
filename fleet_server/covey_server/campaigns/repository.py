"""Reading a campaign from the database: its progress, the counts of its devices, the evidence for its gates.

All of it is a fixed number of set-based statements, whatever the number of devices, on SQLite and on PostgreSQL. What devices
report comes in by `covey_server.campaigns.following`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Select, case, exists, func, or_, select, text
from sqlalchemy.orm import Session, aliased

from covey_server.core.engine import ACTIVE, CampaignState, DeviceState, Progress, RestoreCounts, StageCounts
from covey_server.core.pace import Meter
from covey_server.core.part import ROLLBACK
from covey_server.core.spec import CampaignSpec, spec_from_json
from covey_server.db.tables import Build, Campaign, CampaignChoice, CampaignDevice, CampaignEvent, Model
from covey_server.db.tables.campaigns import OFF, TO_GO, UNSERVED
from covey_server.errors import NotFound

# A device that is off holds up its stage for this long after its last word (a broker that restarts makes all look off),
# and a campaign that goes back for this long.
HOLDS_STAGE_MS = 10_000
HOLDS_RETURN_MS = 30_000

SOAK_SKIPPED = "soak_skipped"
BREACH_ACCEPTED = "breach_accepted"
APPROVED = "approved"
UTC = "UTC"

_ACTIVE = sorted(state.value for state in ACTIVE)
_DECIDES = [
    state.value
    for state in (CampaignState.QUEUED, CampaignState.RUNNING, CampaignState.PAUSED, CampaignState.ROLLING_BACK)
]


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
            CampaignEvent.campaign_id == campaign.id,
            CampaignEvent.kind.in_((SOAK_SKIPPED, BREACH_ACCEPTED, APPROVED)),
        )
    ).all()
    approved = {detail["stage"] for kind, detail in said if kind == APPROVED}
    return Progress(
        spec=spec_of(campaign),
        state=CampaignState(campaign.state),
        stage=campaign.stage,
        stage_started=campaign.stage_started_ms is not None,
        soak_skipped=any(kind == SOAK_SKIPPED and detail["stage"] == campaign.stage for kind, detail in said),
        accepted=frozenset((detail["stage"], detail["gate"]) for kind, detail in said if kind == BREACH_ACCEPTED),
        author=campaign.created_by,
        approved=None in approved,
        approved_stages=frozenset(approved - {None}),
        is_open=campaign.is_open,
        going_back=None if campaign.going_back is None else tuple(campaign.going_back),
        meter=Meter() if campaign.meter is None else Meter(**campaign.meter),
        admitted_ms=campaign.admitted_ms,
    )


def by_name(session: Session, name: str) -> Campaign:
    """Raises `NotFound`."""
    campaign = session.scalar(select(Campaign).where(Campaign.name == name))
    if campaign is None:
        raise NotFound(f"there is no campaign {name}")
    return campaign


def spec_of(campaign: Campaign) -> CampaignSpec:
    return spec_from_json(campaign.spec)


# --- counting -----------------------------------------------------------------------------------------------------


def count(session: Session, campaign: Campaign, spec: CampaignSpec, now_ms: int) -> Counts:
    """The devices of each of the campaign's stages by what they are at: one walk through the covering index, and one through
    that of those that may get an order."""
    part = CampaignDevice
    by = (part.state, part.stage, part.order_kind, part.heard, part.waiting, part.served)
    rows = session.execute(
        select(
            *by,
            func.count().label("number"),
            func.max(part.active_ms).label("active_ms"),
            func.max(part.restored_ms).label("restored_ms"),
        )
        .where(part.campaign_id == campaign.id)
        .group_by(*by)
    )
    timed = _timed(session, campaign, spec, now_ms, by)
    tallies: list[Counter[str]] = [Counter() for _ in spec.stages]
    settled: list[int | None] = [None for _ in spec.stages]
    restores: list[Counter[str]] = [Counter() for _ in spec.stages]
    restored: list[int] = []
    for row in rows:
        if row.stage >= 0:
            _add(tallies[row.stage], restores[row.stage], row, timed.get(tuple(row)[: len(by)], _Timed()))
            active_ms = row.active_ms if DeviceState(row.state) is DeviceState.ACTIVE else None
            settled[row.stage] = max(settled[row.stage] or 0, active_ms or 0) or None
            restored += [row.restored_ms] if row.restored_ms and DeviceState(row.state) in _RESTORED else []
    ready = _ready(session, campaign, now_ms)
    return Counts(
        tuple(_stage_counts(tally, ready.get(index, {})) for index, tally in enumerate(tallies)),
        RestoreCounts(**dict(sum((restores[index] for index in _that_go_back(campaign, spec)), Counter()))),
        tuple(settled),
        max(restored, default=None),
    )


_RESTORED = frozenset({DeviceState.ROLLED_BACK, DeviceState.RESTORED_LOCALLY})


@dataclass(frozen=True)
class _Timed:
    """Of devices that are alike, those for which it is late: off for some time, off for long, active for long without an answer."""

    away: int = 0
    long_away: int = 0
    overdue: int = 0


def _timed(
    session: Session, campaign: Campaign, spec: CampaignSpec, now_ms: int, by: Sequence[Any]
) -> dict[tuple[Any, ...], _Timed]:
    """By what `count` groups by. Those that are off and those that have yet to answer, of which there are few, by indices of theirs."""
    part = CampaignDevice
    found: dict[tuple[Any, ...], _Timed] = {}
    off = select(
        *by,
        func.sum(case((part.off_since_ms < now_ms - HOLDS_STAGE_MS, 1), else_=0)),
        func.sum(case((part.off_since_ms < now_ms - HOLDS_RETURN_MS, 1), else_=0)),
    ).where(part.campaign_id == campaign.id, text(OFF))
    for *key, away, long_away in session.execute(off.group_by(*by)):
        found[tuple(key)] = _Timed(int(away), int(long_away))
    waiting = select(*by, func.count()).where(
        part.campaign_id == campaign.id,
        text(UNSERVED),
        part.active_ms <= now_ms - spec.served.within.ms,
    )
    for *key, overdue in session.execute(waiting.group_by(*by)):
        found[tuple(key)] = replace(found.get(tuple(key), _Timed()), overdue=int(overdue))
    return found


def _add(tally: Counter[str], restore: Counter[str], row: Any, late: _Timed) -> None:
    """Count devices of one stage that are alike."""
    number, away = row.number, late.away
    match DeviceState(row.state):
        case DeviceState.PLANNED:
            tally["planned"] += number
        case DeviceState.ASSIGNED:
            tally["unknown" if row.heard else "away"] += away
            tally["waiting" if row.waiting else "busy" if row.heard else "silent"] += number - away
            restore["to_order"] += number
        case DeviceState.ACTIVE:
            tally["active"] += number
            if row.order_kind is None:
                tally["already"] += number
            else:
                restore["to_order"] += number
                if not row.served:
                    tally["mute"] += late.overdue
                    tally["unserved"] += number - late.overdue
        case DeviceState.FAILED:
            tally["failed"] += number
            restore["failed" if row.order_kind == ROLLBACK else "to_order"] += number
        case DeviceState.RETRYING:
            tally["retrying"] += number
            restore["to_order"] += number
        case DeviceState.ROLLING_BACK:
            restore["restoring"] += number - late.long_away
            restore["away"] += late.long_away
        case DeviceState.ROLLED_BACK | DeviceState.RESTORED_LOCALLY:
            restore["restored"] += number
        case DeviceState.SKIPPED:
            pass


def _stage_counts(tally: Counter[str], ready: Mapping[str, int]) -> StageCounts:
    return StageCounts(**dict(tally), ready=ready)


def _that_go_back(campaign: Campaign, spec: CampaignSpec) -> Sequence[int]:
    if campaign.going_back is not None and campaign.state == CampaignState.ROLLING_BACK.value:
        return campaign.going_back
    return range(len(spec.stages))


def _ready(session: Session, campaign: Campaign, now_ms: int) -> dict[int, dict[str, int]]:
    """By stage and time zone: connected devices for which it is time, of those that have no order or are to be tried again, in
    stages that may hand out now or at the next look. Of a campaign that is not paced, the latter alone."""
    part = CampaignDevice
    # Those that are to be tried again are few, and found by their state; the others have an index for this very question.
    which = text(TO_GO) if campaign.paced else part.state == DeviceState.RETRYING.value
    query = select(part.stage, part.timezone, func.count()).where(
        part.campaign_id == campaign.id,
        which,
        part.stage.between(0, campaign.stage + 1),
        part.off_since_ms.is_(None),
        or_(part.due_ms.is_(None), part.due_ms <= now_ms),
    )
    found: dict[int, dict[str, int]] = {}
    for stage, zone, number in session.execute(query.group_by(part.stage, part.timezone)):
        found.setdefault(stage, {})[zone or UTC] = number
    return found


def deciding_campaigns(session: Session) -> list[int]:
    """Those that the engine has something to decide on: the active ones, then the queued ones by priority and age, so that
    the first that may start is the first to be asked."""
    rows = session.execute(
        select(Campaign.id, Campaign.state, Campaign.spec["priority"].as_integer()).where(
            or_(Campaign.state.in_(_DECIDES), Campaign.is_open)
        )
    )
    return [row[0] for row in sorted(rows, key=lambda row: (row[1] == CampaignState.QUEUED, -(row[2] or 0), row[0]))]


def names_of(session: Session, ids: Collection[int]) -> list[str]:
    return list(session.scalars(select(Campaign.name).where(Campaign.id.in_(ids)))) if ids else []


def rivals_of(session: Session, campaign: Campaign) -> tuple[str, ...]:
    """Campaigns of the same model that share a device with this one and are under way. Locks the model, so that two cannot start
    at once."""
    session.execute(select(Model.name).where(Model.name == campaign.model).with_for_update())
    return tuple(session.scalars(_sharing(campaign).where(Campaign.state.in_(_ACTIVE)).order_by(Campaign.name)))


def open_tails(session: Session, campaign: Campaign) -> list[Campaign]:
    """Campaigns of the same model that share a device with this one, are done and still take in devices."""
    ids = _sharing(campaign, Campaign.id).where(Campaign.is_open, Campaign.state == CampaignState.DONE.value)
    return list(session.scalars(select(Campaign).where(Campaign.id.in_(ids)).order_by(Campaign.id).with_for_update()))


def _sharing(campaign: Campaign, what: Any = Campaign.name) -> Select[Any]:
    """Other campaigns of the same model that have a device in common with this one. A live one may come to have any."""
    mine, theirs = aliased(CampaignDevice), aliased(CampaignDevice)
    shared = exists().where(
        theirs.campaign_id == Campaign.id,
        mine.campaign_id == campaign.id,
        mine.device == theirs.device,
        mine.state != DeviceState.SKIPPED.value,
        theirs.state != DeviceState.SKIPPED.value,
    )
    return select(what).where(Campaign.id != campaign.id, Campaign.model == campaign.model, shared)


def newest_event(session: Session, campaign: Campaign) -> int:
    """The number of the last line of the campaign's log; 0 if there is none."""
    query = select(func.max(CampaignEvent.id)).where(CampaignEvent.campaign_id == campaign.id)
    return session.scalar(query) or 0


def largest_build(session: Session, campaign: Campaign) -> int:
    """The size in bytes of the largest build that the campaign gives to any device."""
    chosen = select(CampaignChoice.build_id).where(CampaignChoice.campaign_id == campaign.id)
    return session.scalar(select(func.max(Build.size)).where(Build.id.in_(chosen))) or 0


def halt_to_restored_s(campaign: Campaign, restored_ms: int | None) -> float | None:
    """Seconds from the halt to the last device restored; None if no device is, or nothing was halted."""
    if restored_ms is None or campaign.halted_ms is None:
        return None
    return max(restored_ms - campaign.halted_ms, 0) / 1000
