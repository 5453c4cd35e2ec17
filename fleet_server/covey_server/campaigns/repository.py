"""Reading a campaign from the database: its progress, the counts of its devices, the evidence for its gates.

All of it is a fixed number of set-based statements, whatever the number of devices, on SQLite and on PostgreSQL. `follow` is
the one that writes: it brings each device's part in a campaign up to what the device has reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import ColumnElement, CursorResult, and_, case, exists, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from covey_contract.lifecycle import BAD, State
from covey_contract.reasons import Reason
from covey_server.core.engine import ACTIVE, CampaignState, DeviceState, Progress, RestoreCounts, StageCounts
from covey_server.core.spec import CampaignSpec, spec_from_json
from covey_server.db.tables import (
    AssignmentRow,
    Build,
    Campaign,
    CampaignDevice,
    CampaignEvent,
    Desired,
    Device,
    Reported,
)

# A device that is off holds up its stage for this long after its last word (a broker that restarts makes all look off),
# and a campaign that goes back for this long.
HOLDS_STAGE_MS = 10_000
HOLDS_RETURN_MS = 30_000

SOAK_SKIPPED = "soak_skipped"
BREACH_ACCEPTED = "breach_accepted"

_ACTIVE = sorted(state.value for state in ACTIVE)
_BAD = sorted(str(state) for state in BAD)
_HAS_ORDER = (DeviceState.ASSIGNED, DeviceState.ACTIVE, DeviceState.FAILED)


@dataclass(frozen=True)
class Counts:
    stages: tuple[StageCounts, ...]
    restore: RestoreCounts


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


# --- following what devices report --------------------------------------------------------------------------------


def follow(session: Session, campaign: Campaign) -> int:
    """Bring the parts of the campaign's devices up to date; how many have changed."""
    part, order = CampaignDevice, AssignmentRow
    its_order = order.id == part.assignment
    rollout, back = and_(its_order, order.kind == "rollout"), and_(its_order, order.kind == "rollback")
    told = {
        "reason": select(order.reason).where(its_order).scalar_subquery(),
        "detail": select(order.detail).where(its_order).scalar_subquery(),
    }
    when = select(order.updated_ms).where(its_order).scalar_subquery()
    taken_over = exists().where(
        Desired.device == part.device, Desired.model == campaign.model, Desired.assignment != part.assignment
    )
    # Each rule: in which states, under which condition, what changes.
    rules: list[tuple[tuple[DeviceState, ...], ColumnElement[bool], dict[str, Any]]] = [
        (
            (*_HAS_ORDER, DeviceState.ROLLING_BACK),
            taken_over,
            {
                "state": DeviceState.SKIPPED.value,
                "reason": Reason.SUPERSEDED.value,
                "detail": "a later order from outside this campaign counts for it",
            },
        ),
        (
            (DeviceState.ASSIGNED, DeviceState.FAILED),
            exists().where(rollout, order.state == State.ACTIVE.value),
            {"state": DeviceState.ACTIVE.value, "active_ms": when, **told},
        ),
        (
            (DeviceState.ASSIGNED, DeviceState.ACTIVE),
            exists().where(rollout, order.state.in_(_BAD)),
            {"state": DeviceState.FAILED.value, **told},
        ),
        (
            (DeviceState.ROLLING_BACK, DeviceState.FAILED),
            _has_gone_back(campaign.model),
            {"state": DeviceState.ROLLED_BACK.value, "restored_ms": when, **told},
        ),
        (
            (DeviceState.ROLLING_BACK,),
            exists().where(back, order.state.in_(_BAD)),
            {"state": DeviceState.FAILED.value, **told},
        ),
    ]
    changed = 0
    for states, condition, values in rules:
        result = session.execute(
            update(part)
            .where(part.campaign_id == campaign.id, part.state.in_([state.value for state in states]), condition)
            .values(values)
            .execution_options(synchronize_session=False)
        )
        changed += cast("CursorResult[Any]", result).rowcount
    return changed


def _has_gone_back(model: str) -> ColumnElement[bool]:
    """The order to go back was followed; or there was nothing to follow, since the device serves its previous build (or, where
    it had none, nothing) and knows of the order."""
    part, order = CampaignDevice, AssignmentRow
    back = and_(order.id == part.assignment, order.kind == "rollback")
    followed = exists().where(back, order.state.in_((State.ACTIVE.value, State.REMOVED.value)))
    knows = exists().where(
        Reported.device == part.device, Reported.model == model, Reported.assignment == part.assignment
    )
    ended_badly = exists().where(back, order.state.in_(_BAD))
    return or_(followed, and_(serves_previous(model), or_(ended_badly, and_(exists().where(back), knows))))


def serves_previous(model: str) -> ColumnElement[bool]:
    """The device of a `CampaignDevice` says that it serves the build from before, and has no other in hand."""
    part, previous = CampaignDevice, aliased(Build)
    # Two levels deep, so it must be told which row it is about.
    digest = select(previous.digest).where(previous.id == part.previous_build_id).correlate(part).scalar_subquery()
    return exists().where(
        Reported.device == part.device,
        Reported.model == model,
        Reported.candidate.is_(None),
        func.coalesce(Reported.active, "") == func.coalesce(digest, ""),
    )


# --- counting -----------------------------------------------------------------------------------------------------


def count(session: Session, campaign: Campaign, stages: int, now_ms: int) -> Counts:
    """The devices of each of the campaign's stages by what they are at."""
    part, order = CampaignDevice, AssignmentRow
    heard = case((order.state != "issued", 1), else_=0)
    rollback = case((order.kind == "rollback", 1), else_=0)
    already = case((part.assignment.is_(None), 1), else_=0)
    by = (
        part.stage,
        part.state,
        heard,
        rollback,
        already,
        _present(now_ms, HOLDS_STAGE_MS),
        _present(now_ms, HOLDS_RETURN_MS),
    )
    rows = session.execute(
        select(*by, func.count())
        .select_from(part)
        .join(Device, Device.id == part.device)
        .outerjoin(order, order.id == part.assignment)
        .where(part.campaign_id == campaign.id, part.build_id.is_not(None))
        .group_by(*by)
    )
    tallies: list[dict[str, int]] = [{} for _ in range(stages)]
    restore: dict[str, int] = {}
    for stage, state, was_heard, is_rollback, was_already, present, held, number in rows:
        tally = tallies[stage]

        def add(into: dict[str, int], name: str, number: int = number) -> None:
            into[name] = into.get(name, 0) + number

        match DeviceState(state):
            case DeviceState.PLANNED:
                add(tally, "planned")
            case DeviceState.ASSIGNED:
                add(tally, "away" if not present else "busy" if was_heard else "silent")
                add(restore, "to_order")
            case DeviceState.ACTIVE:
                add(tally, "active")
                add(*((tally, "already") if was_already else (restore, "to_order")))
            case DeviceState.FAILED:
                add(tally, "failed")
                add(restore, "failed" if is_rollback else "to_order")
            case DeviceState.ROLLING_BACK:
                add(restore, "restoring" if held else "away")
            case DeviceState.ROLLED_BACK | DeviceState.RESTORED_LOCALLY:
                add(restore, "restored")
            case DeviceState.SKIPPED:
                pass
    return Counts(tuple(StageCounts(**tally) for tally in tallies), RestoreCounts(**restore))


def _present(now_ms: int, hold_ms: int) -> ColumnElement[int]:
    recently = and_(Device.last_seen_ms.is_not(None), Device.last_seen_ms >= now_ms - hold_ms)
    return case((and_(Device.revoked_ms.is_(None), or_(Device.online, recently)), 1), else_=0)


def settled_ms(session: Session, campaign: Campaign) -> int | None:
    """When the last device of the present stage became active."""
    return session.scalar(
        select(func.max(CampaignDevice.active_ms)).where(
            CampaignDevice.campaign_id == campaign.id,
            CampaignDevice.stage == campaign.stage,
            CampaignDevice.state == DeviceState.ACTIVE.value,
        )
    )


def open_campaigns(session: Session) -> list[int]:
    """The active ones, and those that have ended but have devices that still catch up."""
    catching_up = exists().where(
        CampaignDevice.campaign_id == Campaign.id,
        CampaignDevice.state.in_((DeviceState.ASSIGNED.value, DeviceState.ROLLING_BACK.value)),
    )
    return list(
        session.scalars(
            select(Campaign.id)
            .where(
                or_(
                    Campaign.state.in_(_ACTIVE),
                    and_(Campaign.state != "planned", catching_up),
                )
            )
            .order_by(Campaign.id)
        )
    )


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
