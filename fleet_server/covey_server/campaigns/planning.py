"""From a campaign file to a plan: which device gets which build in which stage, why, and who is left out. Moves nothing.

A fixed number of statements and one for each stage, whatever the number of devices; what is decided, is decided once for each
kind of device. The plan lives in temporary tables, and with them as long as the transaction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Select, Table, and_, case, false, func, insert, literal, not_, or_, select
from sqlalchemy.orm import Session

from covey_contract.reasons import Reason
from covey_server.campaigns.choice import Chosen, choose_for, kinds_of
from covey_server.campaigns.drawing import Draw, Order
from covey_server.core.document import DocumentError, Path
from covey_server.core.draw import Permutation
from covey_server.core.engine import DeviceState
from covey_server.core.plan import NO_STAGE, cumulative, warnings
from covey_server.core.spec import CampaignSpec, DeviceSet, Stage
from covey_server.db.tables import Build, CampaignChoice, CampaignDevice, Device, Id, Version
from covey_server.errors import NotFound
from covey_server.fleet.groups import in_group
from covey_server.fleet.sql import chunks, table_of

LEFT_OUT = -1  # the stage of those that no stage takes
CHANGED = "its facts changed while this was planned"
# Terms of one condition; SQLite takes conditions of a depth of 1,000.
_TERMS = 50

# Names the line of the campaign file that a complaint is about.
Locate = Callable[[Path, str], DocumentError]


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
    members = {
        index: _condition(session, stage.group, locate, ("stages", index, "group"))
        for index, stage in enumerate(spec.stages)
        if stage.group is not None
    }
    target = _target(session, spec, locate)
    kinds = kinds_of(session, target)
    choices = _Choices()
    numbered = [
        (kind, choices.number(chosen), chosen.build_id is not None)
        for kind, chosen in zip(kinds, choose_for(session, version.id, kinds, spec.objective), strict=True)
    ]
    draw = Draw(session, [_order(stage) for stage in spec.stages])
    draw.fill(target, numbered, Permutation.of(seed))
    placed = 0
    for index, stage in enumerate(spec.stages):
        if stage.group is not None:
            placed += draw.take_members(index, members[index])
        else:
            placed += draw.take_first(index, cumulative(stage, draw.size) - placed, _order(stage))
    tallies = _tallies(session, draw)
    unfit: Counter[int] = Counter()
    for kind, number, fits in numbered:
        if not fits:
            unfit[number] += kind.devices
    reasons = Counter({choices.by_number[number].reason: devices for number, devices in unfit.items()})
    if draw.size > placed:
        reasons[NO_STAGE] += draw.size - placed
    sizes = [sum(each.devices for each in tallies if each.stage == index) for index in range(len(spec.stages))]
    said = [*warnings(spec.stages, sizes, reasons, draw.size), *_unfinished(session, version.id)]
    tallies += [Tally(LEFT_OUT, number, devices) for number, devices in sorted(unfit.items())]
    return Prepared(version, seed, choices.by_number, tallies, said, draw, target)


def parts_of(session: Session, prepared: Prepared, stage: int, limit: int, after: str = "") -> list[PlannedPart]:
    """The devices of a stage, or those left out, by id; at most `limit`, those behind `after`."""
    drawn = prepared.draw.table
    in_stage = drawn.c.stage == stage if stage != LEFT_OUT else drawn.c.stage.is_(None)
    rows = session.execute(
        select(drawn.c.device, drawn.c.choice)
        .where(in_stage, drawn.c.device > after)
        .order_by(drawn.c.device)
        .limit(limit)
    ).all()
    parts = [PlannedPart(device, stage, choice, NO_STAGE if stage == LEFT_OUT else "") for device, choice in rows]
    if stage == LEFT_OUT:
        unfit = prepared.draw.left_out(prepared.target)
        rows = session.execute(
            select(unfit.c.device, unfit.c.choice).where(unfit.c.device > after).order_by(unfit.c.device).limit(limit)
        ).all()
        for device, choice in rows:
            parts.append(PlannedPart(device, stage, choice, _why_unfit(prepared, choice)))
    return sorted(parts, key=lambda part: part.device)[:limit]


def insert_parts(session: Session, campaign_id: int, prepared: Prepared) -> None:
    """Write the choices and the devices' parts of a new campaign. The plan is used up."""
    session.execute(
        insert(table_of(CampaignChoice)),
        [
            {"campaign_id": campaign_id, "number": number, "build_id": chosen.build_id, "why": chosen.why}
            for number, chosen in prepared.choices.items()
        ],
    )
    drawn, choices = prepared.draw.table, table_of(CampaignChoice)
    taken = select(
        drawn.c.device,
        drawn.c.choice,
        case((drawn.c.stage.is_not(None), choices.c.build_id)).label("build_id"),
        func.coalesce(drawn.c.stage, LEFT_OUT).label("stage"),
        case((drawn.c.stage.is_(None), DeviceState.SKIPPED.value), else_=DeviceState.PLANNED.value).label("state"),
        case((drawn.c.stage.is_(None), NO_STAGE), else_="").label("detail"),
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
    prepared.draw.drop()


def _named(choices: Table, campaign_id: int, number: ColumnElement[int]) -> ColumnElement[bool]:
    return and_(choices.c.campaign_id == campaign_id, choices.c.number == number)


def _insert(session: Session, campaign_id: int, rows: Select[Any]) -> None:
    found = rows.subquery()
    given = {
        "campaign_id": literal(campaign_id),
        **{column.name: column for column in found.c},
        "reason": literal(str(Reason.NONE)),
        "heard": false(),
        "served": false(),
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


def _order(_stage: Stage) -> Order:
    return Order()


def _tallies(session: Session, draw: Draw) -> list[Tally]:
    drawn = draw.table.c
    rows = session.execute(
        select(func.coalesce(drawn.stage, LEFT_OUT), drawn.choice, func.count()).group_by(drawn.stage, drawn.choice)
    )
    return sorted((Tally(*row) for row in rows), key=lambda tally: (tally.stage, tally.choice))


def _why_unfit(prepared: Prepared, choice: int | None) -> str:
    return CHANGED if choice is None else prepared.choices[choice].reason


def _target(session: Session, spec: CampaignSpec, locate: Locate) -> ColumnElement[bool]:
    known: set[str] = set()
    for part in chunks(spec.target.devices):
        known.update(session.scalars(select(Device.id).where(Device.id.in_(part), Device.revoked_ms.is_(None))))
    for index, device in enumerate(spec.target.devices):
        if device not in known:
            raise locate(("target", "devices", index), f"no device is called {device}")
    wanted = _any_of(session, spec.target, locate, "target")
    if not (spec.exclude.groups or spec.exclude.devices):
        return wanted
    return and_(wanted, not_(_any_of(session, spec.exclude, locate, "exclude")))


def _any_of(session: Session, target: DeviceSet, locate: Locate, field: str) -> ColumnElement[bool]:
    terms = [_condition(session, group, locate, (field, "groups", at)) for at, group in enumerate(target.groups)]
    if target.devices:
        terms.append(Device.id.in_(target.devices))
    while len(terms) > _TERMS:
        terms = [Device.id.in_(select(Device.id).where(or_(*part))) for part in chunks(terms, _TERMS)]
    return or_(false(), *terms)


def _condition(session: Session, group: str, locate: Locate, path: Path) -> ColumnElement[bool]:
    try:
        return in_group(session, group)
    except NotFound as error:
        raise locate(path, f"there is no group {group}") from error


def _unfinished(session: Session, version_id: int) -> list[str]:
    """A build that is still in work may be the better choice; whoever plans now should know."""
    targets = session.scalars(
        select(Build.target).where(Build.version_id == version_id, Build.state == "building").order_by(Build.target)
    ).all()
    return [f"{', '.join(sorted(set(targets)))} still being built; this plan does without"] if targets else []
