"""The plan of a campaign as people and programs see it: which device gets which build in which stage, and who is left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from covey_server.campaigns.choice import Chosen
from covey_server.campaigns.planning import LEFT_OUT, PlannedPart, Prepared, parts_of
from covey_server.core.spec import CampaignSpec, Stage


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
