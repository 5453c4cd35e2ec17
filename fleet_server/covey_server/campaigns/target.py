"""The devices that a campaign file names, as conditions for queries over devices: its target, and the groups and selectors of its
stages. They say the same at any time; what they find is whoever meets them then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, and_, false, func, not_, or_, select
from sqlalchemy.orm import Session, aliased

from covey_contract.lifecycle import BAD, State
from covey_server.core.document import DocumentError, Path
from covey_server.core.spec import CampaignSpec, DeviceSet, Stage
from covey_server.db.tables import AssignmentRow, Device
from covey_server.errors import Invalid, NotFound
from covey_server.fleet.groups import in_group, meets
from covey_server.fleet.sql import chunks

# Terms of one condition; SQLite takes conditions of a depth of 1,000.
_TERMS = 50
_BAD = sorted(str(state) for state in BAD)

# Names the line of the campaign file that a complaint is about.
Locate = Callable[[Path, str], DocumentError]


def in_target(session: Session, spec: CampaignSpec, locate: Locate) -> ColumnElement[bool]:
    """Whether a `Device` is in the target and not excluded. Raises `DocumentError` for a group or a device that is not there."""
    known: set[str] = set()
    for part in chunks(spec.target.devices):
        known.update(session.scalars(select(Device.id).where(Device.id.in_(part), Device.revoked_ms.is_(None))))
    for index, device in enumerate(spec.target.devices):
        if device not in known:
            raise locate(("target", "devices", index), f"no device is called {device}")
    wanted = _any_of(session, spec.target, locate, "target")
    if spec.exclude.is_empty:
        return wanted
    return and_(wanted, not_(_any_of(session, spec.exclude, locate, "exclude")))


def members_of(session: Session, stage: Stage, index: int, locate: Locate) -> ColumnElement[bool] | None:
    """Whether a `Device` is in the stage's group or meets its selector; None if it names neither. Raises as `in_target`."""
    if stage.group is not None:
        return _in_group(session, stage.group, locate, ("stages", index, "group"))
    if stage.select is not None:
        return _meets(stage.select, locate, ("stages", index, "select"))
    return None


def is_quarantined(model: str, failures: int) -> ColumnElement[bool]:
    """Whether a `Device` failed in the last so many campaigns of the model that reached it, with no success since: neither in
    another campaign nor with an order that a person gave."""
    order, better = AssignmentRow, aliased(AssignmentRow)
    last_good = (
        select(func.max(better.counter))
        .where(
            better.device == order.device,
            better.model == model,
            better.kind != "rollback",
            better.state == str(State.ACTIVE),
        )
        .correlate(order)
        .scalar_subquery()
    )
    failed = (
        select(order.device)
        .where(
            order.model == model,
            order.kind == "rollout",
            order.state.in_(_BAD),
            order.counter > func.coalesce(last_good, 0),
        )
        .group_by(order.device)
        .having(func.count(order.campaign_id.distinct()) >= failures)
    )
    return Device.id.in_(failed)


def _any_of(session: Session, target: DeviceSet, locate: Locate, field: str) -> ColumnElement[bool]:
    terms = [_in_group(session, group, locate, (field, "groups", at)) for at, group in enumerate(target.groups)]
    if target.devices:
        terms.append(Device.id.in_(target.devices))
    if target.select is not None:
        terms.append(_meets(target.select, locate, (field, "select")))
    while len(terms) > _TERMS:
        terms = [Device.id.in_(select(Device.id).where(or_(*part))) for part in chunks(terms, _TERMS)]
    return or_(false(), *terms)


def _in_group(session: Session, group: str, locate: Locate, path: Path) -> ColumnElement[bool]:
    try:
        return in_group(session, group)
    except NotFound as error:
        raise locate(path, f"there is no group {group}") from error


def _meets(selector: dict[str, Any], locate: Locate, path: Path) -> ColumnElement[bool]:
    try:
        return meets(selector)
    except Invalid as error:
        raise locate(path, str(error)) from error
