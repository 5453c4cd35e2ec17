"""Campaigns as people and programs see them: what the API sends and the console shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, func, select
from sqlalchemy.orm import Session, aliased

from covey_server.campaigns.choice import Chosen
from covey_server.campaigns.planning import LEFT_OUT, PlannedPart, Prepared, parts_of
from covey_server.campaigns.repository import APPROVED, count, halt_to_restored_s, spec_of
from covey_server.core.engine import ACTIVE, CampaignState, DeviceState, StageCounts
from covey_server.core.spec import CampaignSpec, Stage
from covey_server.db.tables import (
    Build,
    Campaign,
    CampaignChoice,
    CampaignDevice,
    CampaignEvent,
    Device,
    Reported,
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


@dataclass(frozen=True)
class EventView:
    id: int
    at_ms: int
    kind: str
    who: str
    message: str
    detail: dict[str, Any]


@dataclass(frozen=True)
class PlannedDevice:
    device: str
    profile: str | None
    target: str | None
    build: int | None
    why: dict[str, Any]


@dataclass(frozen=True)
class PlannedChoice:
    """So many devices of a stage get this build, or none, for one reason."""

    profile: str | None
    target: str | None
    build: int | None
    reason: str
    count: int


@dataclass(frozen=True)
class PlannedStageView:
    """`count` devices; `choices` tells them by profile and build; `devices` lists the first of them by id, and `next` is the
    cursor for those that follow."""

    index: int
    name: str
    who: str
    count: int
    choices: list[PlannedChoice]
    devices: list[PlannedDevice]
    next: str | None


@dataclass(frozen=True)
class LeftOutView:
    device: str
    profile: str | None
    reason: str


@dataclass(frozen=True)
class PlanView:
    """What a campaign would do. `devices` counts those in a stage, `left_out_count` those in none; `left_out` lists the first of
    them by id, and `left_out_next` is the cursor for those that follow."""

    name: str
    model: str
    version: str
    objective: str
    seed: int
    devices: int
    stages: list[PlannedStageView]
    left_out_count: int
    left_out: list[LeftOutView]
    left_out_next: str | None
    warnings: list[str]


def plan_view(session: Session, spec: CampaignSpec, prepared: Prepared, limit: int = 100, after: str = "") -> PlanView:
    """Each list of devices holds at most `limit` of them, those behind the cursor `after`."""
    stages = []
    for index, stage in enumerate(prepared.spec.stages):
        parts, cursor = _page_of(session, prepared, index, limit, after)
        stages.append(
            PlannedStageView(
                index=index,
                name=stage.name,
                who=who(stage),
                count=prepared.devices(index),
                choices=_planned_choices(prepared, index),
                devices=[_planned_device(part.device, prepared.choices[part.choice or 0]) for part in parts],
                next=cursor,
            )
        )
    left_out, cursor = _page_of(session, prepared, LEFT_OUT, limit, after)
    return PlanView(
        name=spec.name,
        model=spec.model,
        version=spec.version,
        objective=spec.objective,
        seed=prepared.seed,
        devices=prepared.devices(),
        stages=stages,
        left_out_count=prepared.devices(LEFT_OUT),
        left_out=[LeftOutView(part.device, _profile(prepared, part.choice), part.reason) for part in left_out],
        left_out_next=cursor,
        warnings=list(prepared.warnings),
    )


def _page_of(
    session: Session, prepared: Prepared, stage: int, limit: int, after: str
) -> tuple[list[PlannedPart], str | None]:
    parts = parts_of(session, prepared, stage, limit + 1, after)
    return parts[:limit], parts[limit - 1].device if len(parts) > limit else None


def _planned_device(device: str, chosen: Chosen) -> PlannedDevice:
    return PlannedDevice(device, chosen.why["profile"], chosen.target, chosen.build_id, chosen.why)


def _planned_choices(prepared: Prepared, stage: int) -> list[PlannedChoice]:
    found = []
    for tally in prepared.tallies:
        if tally.stage == stage:
            chosen = prepared.choices[tally.choice]
            found.append(
                PlannedChoice(chosen.why["profile"], chosen.target, chosen.build_id, chosen.reason, tally.devices)
            )
    return found


def _profile(prepared: Prepared, choice: int | None) -> str | None:
    return None if choice is None else prepared.choices[choice].why["profile"]


def who(stage: Stage) -> str:
    """Whom a stage takes, in words."""
    if stage.group is not None:
        return f"group {stage.group}"
    if stage.select is not None:
        return " and ".join(f"{key} {_words(value)}" for key, value in sorted(stage.select.items()))
    amount = f"up to {stage.percent:g} %" if stage.percent is not None else f"up to {stage.count} devices"
    if stage.each is None:
        return amount
    if stage.only is not None:
        return f"{stage.each} {stage.only}" if stage.only else f"no {stage.each}"
    return f"each {stage.each}, one by one" if stage.one_by_one else f"{amount} of each {stage.each}"


def _words(value: object) -> str:
    return " or ".join(str(each) for each in value) if isinstance(value, list) else str(value)


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
    campaign = _by_name(session, name)
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
        query = query.where(*_has_drifted(campaign))
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


def list_events(session: Session, name: str, limit: int, after: int = 0) -> tuple[list[EventView], int | None]:
    """The log of a campaign, oldest first, and the cursor for what follows. Raises `NotFound`."""
    campaign = _by_name(session, name)
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


def _by_name(session: Session, name: str) -> Campaign:
    campaign = session.scalar(select(Campaign).where(Campaign.name == name))
    if campaign is None:
        raise NotFound(f"there is no campaign {name}")
    return campaign


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
    return session.scalar(select(func.count()).where(*_has_drifted(campaign))) or 0


def _has_drifted(campaign: Campaign) -> tuple[ColumnElement[bool], ...]:
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
