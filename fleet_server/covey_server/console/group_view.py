"""Groups: the list, one group with its devices, and the rows in which a selector is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from covey_server.console import device_view
from covey_server.console.device_view import DevicePage
from covey_server.db.tables import Device, Group, GroupMember
from covey_server.errors import Invalid
from covey_server.fleet import groups
from covey_server.fleet.directory import DeviceFilter

PAGE = 50
SPARE_ROWS = 3
MAX_ROWS = 16
PREVIEW = 8
# Of larger fixed lists the form adds and takes away, it does not show them whole.
MAX_LISTED = 5000
# What many devices differ by; any other key may be written.
KNOWN_KEYS = (
    "profile",
    "simulated",
    "facts.architecture",
    "facts.board",
    "facts.cpu_model",
    "facts.os",
    "facts.jetpack",
    "facts.tensorrt",
)
_LABELLED = 200


@dataclass(frozen=True)
class GroupRow:
    """`count` is None for a selector, which is counted when the row is looked at."""

    name: str
    description: str
    selector: dict[str, Any] | None
    count: int | None
    created_ms: int | None


@dataclass(frozen=True)
class GroupList:
    items: list[GroupRow]
    next: str | None


@dataclass(frozen=True)
class GroupPage:
    """`page` is as that of all devices."""

    name: str
    description: str
    selector: dict[str, Any] | None
    fixed: bool
    created_ms: int | None
    page: DevicePage


@dataclass(frozen=True)
class Preview:
    """What a selector finds now: how many devices, and the first of them with their profiles."""

    count: int
    first: list[tuple[str, str | None]]


@dataclass(frozen=True)
class Draft:
    """A group as its form shows it. `devices` is None where there are too many to show."""

    name: str
    new: bool
    description: str
    fixed: bool
    rows: list[tuple[str, str]]
    devices: str | None
    count: int


def listed(session: Session, after: str) -> GroupList:
    found = session.scalars(select(Group).where(Group.name > after).order_by(Group.name).limit(PAGE + 1)).all()
    shown = found[:PAGE]
    counted = session.execute(
        select(GroupMember.group, func.count())
        .join(Device, Device.id == GroupMember.device)
        .where(GroupMember.group.in_([one.name for one in shown]), Device.revoked_ms.is_(None))
        .group_by(GroupMember.group)
    )
    counts = {name: total for name, total in counted}
    rows = [
        GroupRow(
            one.name,
            one.description,
            one.selector,
            counts.get(one.name, 0) if one.selector is None else None,
            one.created_ms,
        )
        for one in shown
    ]
    if not after:
        total = session.scalar(select(func.count()).where(Device.revoked_ms.is_(None))) or 0
        rows.insert(0, GroupRow(groups.ALL, "", None, total, None))
    return GroupList(rows, shown[-1].name if len(found) > PAGE else None)


def group(session: Session, name: str, after: str) -> GroupPage:
    """Raises `NotFound`."""
    page = device_view.devices(session, DeviceFilter(group=name, revoked=False), after)
    held = session.get(Group, name)
    selector = held.selector if held is not None else None
    return GroupPage(
        name=name,
        description=held.description if held is not None else "",
        selector=selector,
        fixed=held is not None and selector is None,
        created_ms=held.created_ms if held is not None else None,
        page=page,
    )


def count(session: Session, name: str) -> int:
    """Raises `NotFound`."""
    members = groups.members_query(session, name).subquery()
    return session.scalar(select(func.count()).select_from(members)) or 0


def preview(session: Session, selector: dict[str, Any]) -> Preview:
    """Raises `Invalid`."""
    found = groups.selected(selector)
    total = session.scalar(select(func.count()).select_from(found.subquery())) or 0
    first = session.execute(found.add_columns(Device.profile).order_by(Device.id).limit(PREVIEW)).all()
    return Preview(total, [(device, profile) for device, profile in first])


def draft(session: Session, name: str) -> Draft:
    """The form of a group that is there. Raises `NotFound`."""
    shown = group(session, name, "")
    devices: str | None = ""
    if shown.fixed:
        members = select(GroupMember.device).where(GroupMember.group == name).order_by(GroupMember.device)
        listed_all = session.scalars(members.limit(MAX_LISTED + 1)).all()
        devices = None if len(listed_all) > MAX_LISTED else "\n".join(listed_all)
    rows = selector_rows(shown.selector or {})
    return Draft(name, False, shown.description, shown.fixed, rows, devices, shown.page.total)


def keys(session: Session) -> list[str]:
    """Keys that a selector may be about: the known ones, and the labels that some devices have."""
    some = session.scalars(select(Device.labels).order_by(Device.enrolled_ms.desc()).limit(_LABELLED))
    return [*KNOWN_KEYS, *sorted({f"labels.{label}" for labels in some for label in labels})]


def selector_rows(selector: dict[str, Any]) -> list[tuple[str, str]]:
    """Key and values of each condition, values separated by commas; with some empty rows for more."""
    rows = [
        (key, ", ".join(_text(one) for one in (value if isinstance(value, list) else [value])))
        for key, value in sorted(selector.items())
    ]
    return [*rows, *[("", "")] * min(SPARE_ROWS, MAX_ROWS - len(rows))]


def read_selector(names: Sequence[str], values: Sequence[str]) -> dict[str, Any]:
    """The selector of a form's rows. A number is one only among facts: labels are texts. Raises `Invalid`.

    >>> read_selector(["labels.line", "facts.cpu_cores", ""], ["a, b", "4", ""])
    {'labels.line': ['a', 'b'], 'facts.cpu_cores': 4}
    """
    found: dict[str, Any] = {}
    for name, text in zip(names, values, strict=False):
        key, given = name.strip(), [one.strip() for one in text.split(",") if one.strip()]
        if not key and not given:
            continue
        if key in found:
            raise Invalid(f"{key} stands in two rows; write its values into one, with commas", field="selector")
        if not given:
            raise Invalid(f"{key[:64]}: say which values", field="selector")
        read = [_value(key, one) for one in given]
        found[key] = read[0] if len(read) == 1 else read
    return found


def _value(key: str, text: str) -> str | bool | float:
    if key == "simulated" or key.startswith("facts."):
        if text in ("true", "false"):
            return text == "true"
        if key != "simulated":
            for kind in (int, float):
                try:
                    value = kind(text)
                except ValueError:
                    continue
                if str(value) == text:
                    return value
    return text


def _text(value: object) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
