"""From a campaign file to a plan: which device gets which build in which stage, why, and who is left out. Moves nothing.

A fixed number of statements and one for each stage, whatever the number of devices; what is decided, is decided once for each
kind of device. The plan lives in temporary tables, and with them as long as the transaction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Select, Table, and_, case, false, func, insert, literal, or_, select
from sqlalchemy.orm import Session

from covey_contract.reasons import Reason
from covey_server.campaigns.choice import Chosen, choose_for, kinds_of
from covey_server.campaigns.drawing import Draw, Order, Portion
from covey_server.campaigns.target import Locate, in_target, is_quarantined, members_of
from covey_server.core.draw import Permutation
from covey_server.core.engine import DeviceState
from covey_server.core.plan import ENOUGH, NO_STAGE, TooManyStagesError, biased, cumulative, expanded, warnings
from covey_server.core.spec import CampaignSpec, Each, Stage
from covey_server.core.windows import is_known
from covey_server.db.engine import roomy
from covey_server.db.tables import Build, CampaignChoice, CampaignDevice, Device, Id, Version
from covey_server.fleet.sql import table_of

LEFT_OUT = -1  # the stage of those that no stage takes
CHANGED = "its facts changed while this was planned"
QUARANTINED = "quarantined: it failed in one campaign of the model after the other"
# What stands for the stage of devices that are left out of the draw, and why.
_CODES = {ENOUGH: -2, QUARANTINED: -3}


@dataclass(frozen=True)
class Tally:
    """Devices of one stage and one choice. `choice` is a key of `Prepared.choices`."""

    stage: int
    choice: int
    devices: int


@dataclass(frozen=True)
class PlannedPart:
    """One device: its stage (`LEFT_OUT`: none, `reason` says why) and the key of its choice, if any was made."""

    device: str
    stage: int
    choice: int | None
    reason: str


@dataclass(frozen=True)
class Prepared:
    """A plan. `choices` holds each different answer once; `tallies` count the devices by stage and choice, the left out as
    stage `LEFT_OUT`. Single devices are read with `parts_of`, in the session that prepared it."""

    version: Version
    spec: CampaignSpec  # with a stage for each profile or site, where one stood for them all
    seed: int
    choices: Mapping[int, Chosen]
    tallies: Sequence[Tally]
    warnings: Sequence[str]
    draw: Draw
    target: ColumnElement[bool]

    def devices(self, stage: int | None = None) -> int:
        """How many are in that stage, or in any."""
        return sum(each.devices for each in self.tallies if each.stage == stage or (stage is None and each.stage >= 0))


def prepare(session: Session, spec: CampaignSpec, seed: int, locate: Locate) -> Prepared:
    """Raises `DocumentError` where the file names a version, group or device that is not there."""
    version = session.scalar(select(Version).where(Version.model == spec.model, Version.name == spec.version))
    if version is None:
        raise locate(("version",), f"there is no version {spec.version} of model {spec.model}")
    members = [members_of(session, stage, index, locate) for index, stage in enumerate(spec.stages)]
    target = in_target(session, spec, locate)
    kinds = kinds_of(session, target)
    choices = _Choices()
    numbered = [
        (kind, choices.number(chosen), chosen.build_id is not None)
        for kind, chosen in zip(kinds, choose_for(session, version.id, kinds, spec.objective), strict=True)
    ]
    orders = _orders(_has_sites(session))
    draw = Draw(
        session, [orders[kind] for kind in dict.fromkeys([spec.draw, *(s.draw or spec.draw for s in spec.stages)])]
    )
    with roomy(session):
        draw.fill(target, numbered, Permutation.of(seed))
    reasons = _leave_out(draw, spec, orders[spec.draw])
    size = draw.size - sum(reasons.values())
    written = _write_out(draw, spec, locate)
    conditions = {stage.name: members[index] for index, stage in enumerate(spec.stages)}
    placed = 0
    for index, stage in enumerate(written.stages):
        placed += _take(draw, index, stage, conditions.get(stage.name), size, placed, orders[stage.draw or spec.draw])
    make_up = draw.make_up()
    tallies = _tallies(make_up)
    unfit: Counter[int] = Counter()
    for kind, number, fits in numbered:
        if not fits:
            unfit[number] += kind.devices
    for number, devices in unfit.items():
        reasons[choices.by_number[number].reason] += devices
    if size > placed:
        reasons[NO_STAGE] += size - placed
    sizes = [sum(each.devices for each in tallies if each.stage == index) for index in range(len(written.stages))]
    said = [
        *warnings(written.stages, sizes, reasons, size),
        *_biased(make_up, written.stages),
        *_lost(session, spec, target),
    ]
    tallies += [Tally(LEFT_OUT, number, devices) for number, devices in sorted(unfit.items())]
    return Prepared(
        version, written, seed, choices.by_number, tallies, [*said, *_unfinished(session, version.id)], draw, target
    )


def _leave_out(draw: Draw, spec: CampaignSpec, order: Order) -> Counter[str]:
    """Devices that have a build and get none: how many, for which reason."""
    reasons: Counter[str] = Counter()
    if spec.quarantine.failures:
        bad = draw.take_members(_CODES[QUARANTINED], is_quarantined(spec.model, spec.quarantine.failures))
        reasons[QUARANTINED] += bad
    if spec.target.at_most is not None:
        reasons[ENOUGH] += draw.take_rest(_CODES[ENOUGH], spec.target.at_most, order)
    return +reasons


def _write_out(draw: Draw, spec: CampaignSpec, locate: Locate) -> CampaignSpec:
    """The file with a stage for each profile or site where one stage stands for them all."""
    wanted = [(index, stage) for index, stage in enumerate(spec.stages) if stage.one_by_one]
    if not wanted:
        return spec
    kinds: dict[Each, dict[str, int]] = {"profile": draw.kinds("profile"), "site": draw.kinds("site")}
    try:
        return msgspec.structs.replace(spec, stages=expanded(spec.stages, kinds))
    except TooManyStagesError as error:
        raise locate(("stages", wanted[0][0], "each"), str(error)) from error


def _take(
    draw: Draw,
    index: int,
    stage: Stage,
    members: ColumnElement[bool] | None,
    size: int,
    placed: int,
    order: Order,
) -> int:
    """Fill one stage, as `covey_server.core.plan.takes` says; how many devices it got."""
    if members is not None:
        return draw.take_members(index, members)
    if stage.each is None:
        return draw.take_first(index, cumulative(stage, size) - placed, order)
    if stage.only is not None:
        return draw.take_kind(index, stage.each, stage.only)
    return draw.take_each(index, stage.each, order, percent=stage.percent, count=stage.count or 0)


def _biased(make_up: Sequence[Portion], stages: Sequence[Stage]) -> list[str]:
    profiles: list[Counter[str]] = [Counter() for _ in stages]
    sites: list[Counter[str]] = [Counter() for _ in stages]
    for each in make_up:
        if each.stage is not None and each.stage >= 0:
            profiles[each.stage][each.profile] += each.devices
            sites[each.stage][each.site] += each.devices
    return biased(stages, profiles, sites)


def _lost(session: Session, spec: CampaignSpec, target: ColumnElement[bool]) -> list[str]:
    """Devices whose maintenance windows cannot be told, since nobody knows their time zone."""
    if spec.maintenance is None or not spec.maintenance.of_device:
        return []
    zones = session.execute(
        select(Device.timezone, func.count()).where(Device.revoked_ms.is_(None), target).group_by(Device.timezone)
    )
    unknown = {zone: number for zone, number in zones if not is_known(zone)}
    return [
        f"{number} devices are in the time zone {zone!r}, which is not known here; UTC is taken for them"
        for zone, number in sorted(unknown.items())
    ]


def _has_sites(session: Session) -> bool:
    return session.scalar(select(Device.id).where(Device.site.is_not(None)).limit(1)) is not None


def parts_of(session: Session, prepared: Prepared, stage: int, limit: int, after: str = "") -> list[PlannedPart]:
    """The devices of a stage, or those left out, by id; at most `limit`, those behind `after`."""
    drawn = prepared.draw.table
    in_stage = drawn.c.stage == stage if stage != LEFT_OUT else or_(drawn.c.stage.is_(None), drawn.c.stage < 0)
    rows = session.execute(
        select(drawn.c.device, drawn.c.choice, drawn.c.stage)
        .where(in_stage, drawn.c.device > after)
        .order_by(drawn.c.device)
        .limit(limit)
    ).all()
    parts = [PlannedPart(device, stage, choice, _why_out(code)) for device, choice, code in rows]
    if stage == LEFT_OUT:
        unfit = prepared.draw.left_out(prepared.target)
        others = session.execute(
            select(unfit.c.device, unfit.c.choice).where(unfit.c.device > after).order_by(unfit.c.device).limit(limit)
        ).all()
        for device, choice in others:
            parts.append(PlannedPart(device, stage, choice, _why_unfit(prepared, choice)))
    return sorted(parts, key=lambda part: part.device)[:limit]


def insert_parts(session: Session, campaign_id: int, prepared: Prepared) -> None:
    """Write the choices and the devices' parts of a new campaign. The plan is used up."""
    with roomy(session):
        _insert_all(session, campaign_id, prepared)
    prepared.draw.drop()


def _insert_all(session: Session, campaign_id: int, prepared: Prepared) -> None:
    if not prepared.choices:  # nobody matches yet
        prepared.draw.drop()
        return
    session.execute(
        insert(table_of(CampaignChoice)),
        [
            {"campaign_id": campaign_id, "number": number, "build_id": chosen.build_id, "why": chosen.why}
            for number, chosen in prepared.choices.items()
        ],
    )
    drawn, choices = prepared.draw.table, table_of(CampaignChoice)
    goes = drawn.c.stage >= 0
    taken = select(
        drawn.c.device,
        drawn.c.choice,
        case((goes, choices.c.build_id)).label("build_id"),
        case((goes, drawn.c.stage), else_=LEFT_OUT).label("stage"),
        case((goes, DeviceState.PLANNED.value), else_=DeviceState.SKIPPED.value).label("state"),
        case((goes, ""), *((drawn.c.stage == code, why) for why, code in _CODES.items()), else_=NO_STAGE).label(
            "detail"
        ),
    )
    _insert(session, campaign_id, taken.join(choices, _named(choices, campaign_id, drawn.c.choice)))
    if any(chosen.build_id is None for chosen in prepared.choices.values()):
        unfit = prepared.draw.left_out(prepared.target)
        left_out = select(
            unfit.c.device,
            unfit.c.choice,
            literal(None, Id).label("build_id"),
            literal(LEFT_OUT).label("stage"),
            literal(DeviceState.SKIPPED.value).label("state"),
            func.coalesce(choices.c.why["reason"].as_string(), CHANGED).label("detail"),
        )
        _insert(session, campaign_id, left_out.outerjoin(choices, _named(choices, campaign_id, unfit.c.choice)))


def _named(choices: Table, campaign_id: int, number: ColumnElement[int]) -> ColumnElement[bool]:
    return and_(choices.c.campaign_id == campaign_id, choices.c.number == number)


def _insert(session: Session, campaign_id: int, rows: Select[Any]) -> None:
    found = rows.subquery()
    given = {
        "campaign_id": literal(campaign_id),
        **{column.name: column for column in found.c},
        "reason": literal(str(Reason.NONE)),
        "heard": false(),
        "waiting": false(),
        "served": false(),
        "attempts": literal(0),
    }
    session.execute(
        insert(table_of(CampaignDevice)).from_select(list(given), select(*given.values()), include_defaults=False)
    )


class _Choices:
    """Equal answers get the same number."""

    def __init__(self) -> None:
        self.by_number: dict[int, Chosen] = {}
        self._numbers: dict[bytes, int] = {}

    def number(self, chosen: Chosen) -> int:
        number = self._numbers.setdefault(msgspec.json.encode(chosen.why), len(self._numbers) + 1)
        self.by_number[number] = chosen
        return number


def _orders(has_sites: bool) -> dict[str, Order]:
    """That of each way to draw. Where no device has a site, nothing is gained by spreading over them."""
    within = ("site",) if has_sites else ()
    return {
        "spread": Order(within=within),
        "random": Order(strata=()),
        "least_critical": Order(strata=("criticality", "profile"), within=within, first=("criticality",)),
    }


def _tallies(make_up: Sequence[Portion]) -> list[Tally]:
    found: Counter[tuple[int, int]] = Counter()
    for each in make_up:
        found[LEFT_OUT if each.stage is None else max(each.stage, LEFT_OUT), each.choice] += each.devices
    return [Tally(stage, choice, number) for (stage, choice), number in sorted(found.items())]


def _why_out(code: int | None) -> str:
    """Why a device that was drawn is in no stage; empty if it is in one."""
    if code is not None and code >= 0:
        return ""
    return next((why for why, own in _CODES.items() if own == code), NO_STAGE)


def _why_unfit(prepared: Prepared, choice: int | None) -> str:
    return CHANGED if choice is None else prepared.choices[choice].reason


def _unfinished(session: Session, version_id: int) -> list[str]:
    """A build that is still in work may be the better choice; whoever plans now should know."""
    targets = session.scalars(
        select(Build.target).where(Build.version_id == version_id, Build.state == "building").order_by(Build.target)
    ).all()
    return [f"{', '.join(sorted(set(targets)))} still being built; this plan does without"] if targets else []
