"""Campaigns as people and programs see them: what the API sends and the console shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, func, select
from sqlalchemy.orm import Session

from covey_server.campaigns.device_views import has_drifted
from covey_server.campaigns.plan_views import who
from covey_server.campaigns.repository import APPROVED, by_name, count, halt_to_restored_s, spec_of
from covey_server.core.engine import ACTIVE, CampaignState, DeviceState, StageCounts
from covey_server.core.spec import Stage
from covey_server.db.tables import (
    Campaign,
    CampaignDevice,
    CampaignEvent,
    Version,
)
from covey_server.errors import NotFound


@dataclass(frozen=True)
class CampaignSummary:
    """A campaign in a list. `devices` are those that get a build; `active` and `failed` count among them."""

    name: str
    model: str
    version: str
    state: str
    is_open: bool  # done, and devices that come later are served
    stage: int
    stage_name: str
    stage_count: int
    devices: int
    active: int
    failed: int
    waiting_for: str
    created_ms: int
    created_by: str
    started_ms: int | None
    halted_ms: int | None
    finished_ms: int | None


@dataclass(frozen=True)
class StageView:
    """`state`: waiting, running, passed, or stopped (the campaign ended in it). `counts`: devices by their state in the campaign.
    `progress` tells apart what is different: `not_reached` (have no order, or have not said a word of it and are off),
    `in_progress`, `waiting` (for a condition on the device, or for their next try), `unknown` (fell silent while at work),
    `served` (run the version and have answered requests with it), `unserved` (have not answered yet), `failed`; and, finer,
    `busy`, `silent` and `away` of the assigned ones, `retrying`, and `mute` (should have answered by now)."""

    index: int
    name: str
    who: str
    soak_s: float
    state: str
    not_before_ms: int | None
    approval: str | None  # None: needs none; else waiting, or who gave it
    started_ms: int | None
    devices: int
    counts: dict[str, int]
    progress: dict[str, int]


@dataclass(frozen=True)
class CampaignView(CampaignSummary):
    """A whole campaign. `gates` is each gate's word on the stage `gates_stage`, the present one or the last, as
    `covey_server.core.gates.Verdict.to_json` writes it; `verdict` that of the gate
    that tripped, with `stage` and `at_ms`; None while none has. `progress` adds up those of the stages. `drifted`: devices that
    run something else than the campaign left them on."""

    objective: str
    on_breach: str
    on_breach_scope: str
    min_reached: float
    seed: int | None
    membership: str
    conflict: str
    priority: int
    approval: str | None  # None: needs none; else waiting, or who gave it
    start_ms: int | None
    end_ms: int | None
    going_back: list[str] | None  # the stages that go back, or went; None: all, or none
    left_out: int
    progress: dict[str, int]
    drifted: int
    stages: list[StageView]
    gates_stage: str | None
    gates: list[dict[str, Any]]
    verdict: dict[str, Any] | None
    restored: int
    halt_to_restored_s: float | None
    source: str


@dataclass(frozen=True)
class EventView:
    id: int
    at_ms: int
    kind: str
    who: str
    message: str
    detail: dict[str, Any]


def list_campaigns(session: Session, limit: int, after: int = 0) -> tuple[list[CampaignSummary], int | None]:
    """The newest first, and the cursor for those that follow; `after` is such a cursor, 0 for none."""
    query = _campaigns().order_by(Campaign.id.desc()).limit(limit + 1)
    if after:
        query = query.where(Campaign.id < after)
    rows = session.execute(query).all()
    page = rows[:limit]
    tallies = _tallies(session, [row[0].id for row in page])
    items = [CampaignSummary(**_summary(row, tallies.get(row[0].id, {}))) for row in page]
    return items, page[-1][0].id if len(rows) > limit else None


def show(session: Session, name: str, now_ms: int) -> CampaignView:
    """Raises `NotFound`."""
    row = session.execute(_campaigns().where(Campaign.name == name)).one_or_none()
    if row is None:
        raise NotFound(f"there is no campaign {name}")
    campaign: Campaign = row[0]
    spec = spec_of(campaign)
    by_stage = _by_stage(session, campaign)
    counts = count(session, campaign, spec, now_ms)
    approvals = _approvals(session, campaign)
    verdict = campaign.verdict or {}
    return CampaignView(
        **_summary(row, _tallies(session, [campaign.id]).get(campaign.id, {})),
        objective=spec.objective,
        on_breach=spec.breach.action,
        on_breach_scope=spec.breach.scope,
        min_reached=spec.min_reached,
        seed=spec.seed,
        membership=spec.target.membership,
        conflict=spec.conflict,
        priority=spec.priority,
        approval=approvals.get(None, "waiting") if spec.approval else None,
        start_ms=None if spec.schedule.start is None else spec.schedule.start.ms,
        end_ms=None if spec.schedule.end is None else spec.schedule.end.ms,
        going_back=None if campaign.going_back is None else [spec.stages[each].name for each in campaign.going_back],
        progress=_total([_progress(each) for each in counts.stages]),
        drifted=_drifted(session, campaign),
        left_out=sum(by_stage.get(-1, {}).values()),
        stages=[
            _stage_view(campaign, index, stage, by_stage.get(index, {}), counts.stages[index], approvals)
            for index, stage in enumerate(spec.stages)
        ],
        gates_stage=verdict.get("stage"),
        gates=verdict.get("gates", []),
        verdict=verdict.get("tripped"),
        restored=counts.restore.restored,
        halt_to_restored_s=halt_to_restored_s(campaign, counts.restored_ms),
        source=campaign.source,
    )


def list_events(session: Session, name: str, limit: int, after: int = 0) -> tuple[list[EventView], int | None]:
    """The log of a campaign, oldest first, and the cursor for what follows. Raises `NotFound`."""
    campaign = by_name(session, name)
    rows = session.scalars(
        select(CampaignEvent)
        .where(CampaignEvent.campaign_id == campaign.id, CampaignEvent.id > after)
        .order_by(CampaignEvent.id)
        .limit(limit + 1)
    ).all()
    items = [EventView(row.id, row.at_ms, row.kind, row.who, row.message, row.detail) for row in rows[:limit]]
    return items, items[-1].id if len(rows) > limit else None


def _campaigns() -> Select[Campaign, str]:
    return select(Campaign, Version.name.label("version")).join(Version, Version.id == Campaign.version_id)


def _tallies(session: Session, ids: list[int]) -> dict[int, dict[str, int]]:
    """Devices that get a build, by campaign and state."""
    tallies: dict[int, dict[str, int]] = {}
    rows = session.execute(
        select(CampaignDevice.campaign_id, CampaignDevice.state, func.count())
        .where(CampaignDevice.campaign_id.in_(ids), CampaignDevice.build_id.is_not(None))
        .group_by(CampaignDevice.campaign_id, CampaignDevice.state)
    )
    for campaign_id, state, number in rows:
        tallies.setdefault(campaign_id, {})[state] = number
    return tallies


def _by_stage(session: Session, campaign: Campaign) -> dict[int, dict[str, int]]:
    rows = session.execute(
        select(CampaignDevice.stage, CampaignDevice.state, func.count())
        .where(CampaignDevice.campaign_id == campaign.id)
        .group_by(CampaignDevice.stage, CampaignDevice.state)
    )
    found: dict[int, dict[str, int]] = {}
    for stage, state, number in rows:
        found.setdefault(stage, {})[state] = number
    return found


def _summary(row: Row[Campaign, str], tally: dict[str, int]) -> dict[str, Any]:
    campaign: Campaign = row[0]
    stages = spec_of(campaign).stages
    return {
        "name": campaign.name,
        "model": campaign.model,
        "version": row[1],
        "state": campaign.state,
        "is_open": campaign.is_open,
        "stage": campaign.stage,
        "stage_name": stages[campaign.stage].name,
        "stage_count": len(stages),
        "devices": sum(tally.values()),
        "active": tally.get(DeviceState.ACTIVE.value, 0),
        "failed": tally.get(DeviceState.FAILED.value, 0),
        "waiting_for": campaign.waiting_for,
        "created_ms": campaign.created_ms,
        "created_by": campaign.created_by,
        "started_ms": campaign.started_ms,
        "halted_ms": campaign.halted_ms,
        "finished_ms": campaign.finished_ms,
    }


def _stage_view(
    campaign: Campaign,
    index: int,
    stage: Stage,
    tally: dict[str, int],
    counts: StageCounts,
    approvals: Mapping[int | None, str],
) -> StageView:
    state = CampaignState(campaign.state)
    here = index == campaign.stage
    if index < campaign.stage or (here and state is CampaignState.DONE):
        shown = "passed"
    elif here and campaign.stage_started_ms is not None:
        shown = "running" if state in ACTIVE else "stopped"
    else:
        shown = "waiting"
    return StageView(
        index=index,
        name=stage.name,
        who=who(stage),
        soak_s=stage.soak.ms / 1000,
        state=shown,
        not_before_ms=None if stage.not_before is None else stage.not_before.ms,
        approval=approvals.get(index, "waiting") if stage.approval else None,
        started_ms=campaign.stage_started_ms if here else None,
        devices=sum(tally.values()),
        counts={state.value: tally.get(state.value, 0) for state in DeviceState},
        progress=_progress(counts),
    )


def _progress(counts: StageCounts) -> dict[str, int]:
    return {
        "not_reached": counts.planned + counts.away,
        "in_progress": counts.busy + counts.silent,
        "waiting": counts.waiting + counts.retrying,
        "unknown": counts.unknown,
        "served": counts.served,
        "unserved": counts.unserved + counts.mute,
        "failed": counts.failed,
        "busy": counts.busy,
        "silent": counts.silent,
        "away": counts.away,
        "retrying": counts.retrying,
        "mute": counts.mute,
    }


def _total(stages: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {name: sum(each[name] for each in stages) for name in stages[0]}


def _approvals(session: Session, campaign: Campaign) -> dict[int | None, str]:
    """Who approved the campaign (None) and its stages."""
    rows = session.execute(
        select(CampaignEvent.detail, CampaignEvent.who).where(
            CampaignEvent.campaign_id == campaign.id, CampaignEvent.kind == APPROVED
        )
    )
    return {detail["stage"]: who for detail, who in rows}


def _drifted(session: Session, campaign: Campaign) -> int:
    return session.scalar(select(func.count()).where(*has_drifted(campaign))) or 0
