"""Groups of devices: fixed lists, and selectors over facts, labels and firmware profile that are evaluated when read.

The group `all` always exists: every device that is not revoked. Revoked devices are in no group.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, String, and_, cast, delete, func, insert, or_, select, true
from sqlalchemy.orm import Session

from covey_server.db.tables import Device, Group, GroupMember
from covey_server.errors import Conflict, Invalid, NotFound
from covey_server.fleet.sql import chunks, table_of

ALL = "all"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SELECTOR_KEY = re.compile(r"profile|simulated|labels\.[A-Za-z0-9_-]{1,64}|facts(\.[A-Za-z0-9_]{1,64}){1,4}")
_MAX_TERMS = 16
_MAX_CHOICES = 64
MAX_MEMBERS = 100_000


def members_query(session: Session, name: str) -> Select[str]:
    """The ids of the group's devices. Raises `NotFound`."""
    return select(Device.id).where(Device.revoked_ms.is_(None), in_group(session, name))


def in_group(session: Session, name: str) -> ColumnElement[bool]:
    """Whether a `Device` that is not revoked is in the group, as a condition for a query over devices. Raises `NotFound`."""
    if name == ALL:
        return true()
    group = session.get(Group, name)
    if group is None:
        raise NotFound(f"no group is called {name!r}")
    if group.selector is not None:
        return and_(*_conditions(group.selector))
    return Device.id.in_(select(GroupMember.device).where(GroupMember.group == name))


def meets(selector: dict[str, Any]) -> ColumnElement[bool]:
    """Whether a `Device` is one that a selector finds, as a condition for a query over devices. Raises `Invalid`."""
    check_selector(selector)
    return and_(*_conditions(selector))


def selected(selector: dict[str, Any]) -> Select[str]:
    """The ids of the devices that a selector finds now, whether or not a group has it. Raises `Invalid`."""
    check_selector(selector)
    return select(Device.id).where(Device.revoked_ms.is_(None), *_conditions(selector))


def check_selector(selector: dict[str, Any]) -> None:
    """Raises `Invalid` unless it is `{KEY: VALUE or [VALUES], …}`: KEY `profile`, `simulated`, `labels.NAME` or
    `facts.PATH`; a device is selected if it has one of the values for every key."""
    if not 1 <= len(selector) <= _MAX_TERMS:
        raise Invalid(f"a selector has 1 to {_MAX_TERMS} keys", field="selector")
    for key, value in selector.items():
        where = f"selector.{key}"[:128]
        if not _SELECTOR_KEY.fullmatch(key):
            raise Invalid(
                f"selector key {key[:64]!r} is not profile, simulated, labels.NAME or facts.PATH", field=where
            )
        choices = value if isinstance(value, list) else [value]
        if not 1 <= len(choices) <= _MAX_CHOICES:
            raise Invalid(f"{key}: 1 to {_MAX_CHOICES} values", field=where)
        for choice in choices:
            if not _is_plain(choice):
                raise Invalid(f"{key}: a value is a short text, a number, true or false", field=where)
            if (key == "profile" and not isinstance(choice, str)) or (
                key == "simulated" and not isinstance(choice, bool)
            ):
                raise Invalid(f"{key}: {choice!r} is of the wrong kind", field=where)


def _is_plain(choice: Any) -> bool:
    if isinstance(choice, str):
        return len(choice) <= 256 and "\0" not in choice
    return isinstance(choice, (bool, int, float)) and abs(choice) < 1 << 53


def _conditions(selector: dict[str, Any]) -> list[ColumnElement[bool]]:
    return [
        or_(*(_condition(key, choice) for choice in (value if isinstance(value, list) else [value])))
        for key, value in sorted(selector.items())
    ]


def _condition(key: str, value: str | bool | float) -> ColumnElement[bool]:
    if key == "profile":
        return Device.profile == value
    if key == "simulated":
        return Device.simulated.is_(bool(value))
    column, *path = key.split(".")
    element = (Device.labels if column == "labels" else Device.facts)[tuple(path)]
    # Compared as text: PostgreSQL fails a whole query over one device whose fact is not of the kind asked for.
    return cast(element.as_string(), String).in_(_spellings(value))


def _spellings(value: str | bool | float) -> list[str]:
    """How the databases write a JSON value as text."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, bool):
        return ["true", "1"] if value else ["false", "0"]
    whole = [str(int(value)), f"{int(value)}.0"] if value == int(value) else []
    return [str(value), *whole]


def put_group(
    session: Session,
    name: str,
    *,
    description: str,
    devices: Sequence[str] | None,
    selector: dict[str, Any] | None,
    now_ms: int,
) -> bool:
    """Make the group or replace it; exactly one of `devices` and `selector` is given. Returns whether it is new.

    Raises `Invalid` (also for a device that does not exist) or `Conflict` (for `all`).
    """
    if not NAME.fullmatch(name):
        raise Invalid(f"group name {name[:64]!r}: 1 to 64 of A-Z a-z 0-9 . _ -", field="name")
    if name == ALL:
        raise Conflict("the group 'all' is every device; it cannot be changed")
    if (devices is None) == (selector is None):
        raise Invalid("a group has either devices or a selector", field="devices")
    if selector is not None:
        check_selector(selector)
    wanted = sorted(set(devices or ()))
    known: set[str] = set()
    for part in chunks(wanted):
        known.update(session.scalars(select(Device.id).where(Device.id.in_(part))))
    unknown = [device for device in wanted if device not in known]
    if unknown:
        raise Invalid(f"no device is called {unknown[0]!r}", field="devices", unknown=unknown[:20])
    group = session.get(Group, name)
    new = group is None
    if group is None:
        group = Group(name=name, created_ms=now_ms)
        session.add(group)
    group.description, group.selector = description, selector
    session.flush()
    session.execute(delete(GroupMember).where(GroupMember.group == name))
    if wanted:
        session.execute(insert(table_of(GroupMember)), [{"group_name": name, "device": device} for device in wanted])
    return new


def delete_group(session: Session, name: str) -> None:
    if name == ALL:
        raise Conflict("the group 'all' is every device; it cannot be deleted")
    group = session.get(Group, name)
    if group is None:
        raise NotFound(f"no group is called {name!r}")
    session.execute(delete(GroupMember).where(GroupMember.group == name))
    session.delete(group)


def describe(session: Session, name: str) -> dict[str, Any]:
    """The group as the API shows it, with the number of its devices now. Raises `NotFound`."""
    members = members_query(session, name).subquery()
    count = session.scalar(select(func.count()).select_from(members))
    group = session.get(Group, name) if name != ALL else None
    return {
        "name": name,
        "description": "every device" if group is None else group.description,
        "selector": None if group is None else group.selector,
        "fixed": group is not None and group.selector is None,
        "count": count,
        "created_ms": None if group is None else group.created_ms,
    }


def names(session: Session) -> list[str]:
    return [ALL, *session.scalars(select(Group.name).order_by(Group.name))]


def fixed_names(session: Session) -> list[str]:
    """The groups that are fixed lists, which a device can be put into."""
    rows = session.execute(select(Group.name, Group.selector).order_by(Group.name))
    return [name for name, selector in rows if selector is None]


def groups_of(session: Session, device: str) -> list[str]:
    """The groups that a device is in, `all` included unless it is revoked; in the order of `names`."""
    if session.scalar(select(Device.id).where(Device.id == device, Device.revoked_ms.is_(None))) is None:
        return []
    found = set(session.scalars(select(GroupMember.group).where(GroupMember.device == device)))
    rows = session.execute(select(Group.name, Group.selector))
    for part in chunks([(name, selector) for name, selector in rows if selector is not None]):
        # All selectors at once, each as a column that says whether it holds.
        holds = [and_(*_conditions(selector)) for _, selector in part]
        row = session.execute(select(*holds).where(Device.id == device)).one()
        found.update(name for (name, _), held in zip(part, row, strict=True) if held)
    return [ALL, *sorted(found)]
