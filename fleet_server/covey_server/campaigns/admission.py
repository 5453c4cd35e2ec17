"""Taking in devices that have come to match a live campaign, and leaving out planned ones that no longer do.

It costs a query over the fleet, so the engine asks for it only now and then; a bounded number is taken in each time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, exists, func, insert, not_, select, update
from sqlalchemy.orm import Session, aliased

from covey_contract.reasons import Reason
from covey_server.campaigns.choice import Chosen, Kind, choose_for
from covey_server.campaigns.following import off_since_ms
from covey_server.campaigns.target import in_target, is_quarantined, members_of
from covey_server.core.document import DocumentError, show_path
from covey_server.core.engine import ACTIVE, DeviceState
from covey_server.core.plan import NO_STAGE, Candidate, Newcomer, drawn, place
from covey_server.core.spec import CampaignSpec
from covey_server.db.tables import Campaign, CampaignChoice, CampaignDevice, Device
from covey_server.fleet.sql import table_of

ADMITTED_A_LOOK = 2_000
LEFT = "no longer matches the target"
_LEFT_OUT = -1
_ACTIVE = [state.value for state in ACTIVE]


@dataclass(frozen=True)
class Admitted:
    """`problem`: why nobody could be looked for."""

    come: int = 0
    gone: int = 0
    problem: str = ""


def admit(session: Session, campaign: Campaign, spec: CampaignSpec, start: int) -> Admitted:
    """Devices that match now, into stage `start` or a later one; planned ones that no longer match are left out."""
    try:
        target = in_target(session, spec, _locate)
        members = [members_of(session, stage, index, _locate) for index, stage in enumerate(spec.stages)]
    except DocumentError as error:
        return Admitted(problem=str(error))
    gone = _leave(session, campaign, target)
    room = _room(session, campaign, spec)
    rows = _newcomers(session, campaign, spec, target, room) if room else []
    if not rows:
        return Admitted(gone=gone)
    matches: dict[str, set[int]] = {row.id: set() for row in rows}
    for index, condition in enumerate(members):
        if condition is not None:
            found = session.scalars(select(Device.id).where(Device.id.in_(list(matches)), condition))
            for device in found:
                matches[device].add(index)
    by_kind = _choose(session, campaign, spec, rows)
    fit = {row.id: _candidate(row) for row in rows if by_kind[_kind(row)].build_id is not None}
    in_order = drawn(list(fit.values()), spec.seed or 0, spec.draw)
    newcomers = [Newcomer(each, frozenset(matches[each.device])) for each in in_order]
    stages = place(newcomers, spec.stages, start, _placed(session, campaign))
    numbers = _number(session, campaign, by_kind)
    session.execute(insert(table_of(CampaignDevice)), [_part(campaign, row, by_kind, numbers, stages) for row in rows])
    return Admitted(come=len(stages), gone=gone)


def _leave(session: Session, campaign: Campaign, target: ColumnElement[bool]) -> int:
    """Planned devices that no longer match are left out, those that match again are planned again; how many were left out."""
    part = CampaignDevice
    there = select(Device.id).where(Device.revoked_ms.is_(None), target)
    its = part.campaign_id == campaign.id
    planned, skipped = part.state == DeviceState.PLANNED.value, part.state == DeviceState.SKIPPED.value
    went = session.scalars(select(part.device).where(its, planned, part.device.not_in(there))).all()
    back = (its, skipped, part.detail == LEFT, part.device.in_(there))
    for conditions, values in (
        ((its, planned, part.device.not_in(there)), {"state": DeviceState.SKIPPED.value, "detail": LEFT}),
        (back, {"state": DeviceState.PLANNED.value, "detail": ""}),
    ):
        if conditions is back or went:
            session.execute(update(part).where(*conditions).values(values).execution_options(synchronize_session=False))
    return len(went)


def _room(session: Session, campaign: Campaign, spec: CampaignSpec) -> int:
    """How many more devices may be taken in now."""
    if spec.target.at_most is None:
        return ADMITTED_A_LOOK
    taken = session.scalar(
        select(func.count()).where(
            CampaignDevice.campaign_id == campaign.id,
            CampaignDevice.stage >= 0,
            CampaignDevice.state != DeviceState.SKIPPED.value,
        )
    )
    return min(max(spec.target.at_most - (taken or 0), 0), ADMITTED_A_LOOK)


def _newcomers(
    session: Session, campaign: Campaign, spec: CampaignSpec, target: ColumnElement[bool], limit: int
) -> list[Row[Any]]:
    """Devices that match and have no part in the campaign. Whoever is in another campaign of the model that is under way is
    left to that."""
    part, other, theirs = aliased(CampaignDevice), aliased(Campaign), aliased(CampaignDevice)
    known = exists().where(part.campaign_id == campaign.id, part.device == Device.id)
    busy = exists().where(
        theirs.device == Device.id,
        theirs.state != DeviceState.SKIPPED.value,
        other.id == theirs.campaign_id,
        other.id != campaign.id,
        other.model == campaign.model,
        other.state.in_(_ACTIVE),
    )
    wanted = [Device.revoked_ms.is_(None), target, not_(known), not_(busy)]
    if spec.quarantine.failures:
        wanted.append(not_(is_quarantined(spec.model, spec.quarantine.failures)))
    query = select(
        Device.id,
        Device.profile,
        Device.facts_digest,
        Device.site,
        Device.criticality,
        Device.timezone,
        Device.online,
        Device.last_seen_ms,
        Device.revoked_ms,
    )
    return list(session.execute(query.where(*wanted).order_by(Device.id).limit(limit)))


def _choose(
    session: Session, campaign: Campaign, spec: CampaignSpec, rows: list[Row[Any]]
) -> dict[tuple[str, str], Chosen]:
    kinds: dict[tuple[str, str], Kind] = {}
    for row in rows:
        kinds.setdefault(_kind(row), Kind(row.profile or "", row.facts_digest, row.id, 1))
    chosen = choose_for(session, campaign.version_id, list(kinds.values()), spec.objective)
    return dict(zip(kinds, chosen, strict=True))


def _number(session: Session, campaign: Campaign, by_kind: dict[tuple[str, str], Chosen]) -> dict[tuple[str, str], int]:
    """The number of each choice among those of the campaign, new ones added."""
    held = session.execute(
        select(CampaignChoice.number, CampaignChoice.build_id, CampaignChoice.why).where(
            CampaignChoice.campaign_id == campaign.id
        )
    ).all()
    numbers: dict[tuple[str, str], int] = {}
    known = [(row.build_id, row.why, row.number) for row in held]
    for kind, chosen in by_kind.items():
        number = next((at for build, why, at in known if (build, why) == (chosen.build_id, chosen.why)), None)
        if number is None:
            number = max((at for _, _, at in known), default=0) + 1
            known.append((chosen.build_id, chosen.why, number))
            session.add(
                CampaignChoice(campaign_id=campaign.id, number=number, build_id=chosen.build_id, why=chosen.why)
            )
        numbers[kind] = number
    session.flush()
    return numbers


def _placed(session: Session, campaign: Campaign) -> dict[tuple[int, str, str], int]:
    """How many devices of the campaign there are of each stage, profile and site."""
    rows = session.execute(
        select(CampaignDevice.stage, Device.profile, Device.site, func.count())
        .join(Device, Device.id == CampaignDevice.device)
        .where(CampaignDevice.campaign_id == campaign.id, CampaignDevice.build_id.is_not(None))
        .group_by(CampaignDevice.stage, Device.profile, Device.site)
    )
    return {(stage, profile or "", site or ""): number for stage, profile, site, number in rows}


def _part(
    campaign: Campaign,
    row: Row[Any],
    by_kind: dict[tuple[str, str], Chosen],
    numbers: dict[tuple[str, str], int],
    stages: dict[str, int],
) -> dict[str, Any]:
    chosen, stage = by_kind[_kind(row)], stages.get(row.id, _LEFT_OUT)
    goes = stage != _LEFT_OUT
    return {
        "campaign_id": campaign.id,
        "device": row.id,
        "stage": stage,
        "state": (DeviceState.PLANNED if goes else DeviceState.SKIPPED).value,
        "choice": numbers[_kind(row)],
        "build_id": chosen.build_id if goes else None,
        "heard": False,
        "waiting": False,
        "served": False,
        "attempts": 0,
        "timezone": row.timezone,
        "off_since_ms": off_since_ms(row),
        "reason": str(Reason.NONE),
        "detail": "" if goes else NO_STAGE if chosen.build_id is not None else chosen.reason,
    }


def _candidate(row: Row[Any]) -> Candidate:
    return Candidate(row.id, row.profile, None, row.site or "", row.criticality)


def _kind(row: Row[Any]) -> tuple[str, str]:
    return row.profile or "", row.facts_digest


def _locate(path: tuple[str | int, ...], message: str) -> DocumentError:
    return DocumentError(message, field=show_path(path))
