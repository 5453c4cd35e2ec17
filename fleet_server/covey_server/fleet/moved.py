"""What has changed of devices, noted for whoever follows it up (the campaigns), in the transaction that makes the change.

The table is append-only and its rows name devices, not changes: whoever follows up reads the present state. So a note may come
twice and late, but a change without a note, or a note without its change, cannot be committed.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import ColumnElement, insert, literal, select
from sqlalchemy.orm import Session

from covey_server.db.tables import Device, MovedDevice
from covey_server.fleet.sql import table_of

ALL_MODELS = ""


def note_moved(session: Session, pairs: Iterable[tuple[str, str]]) -> None:
    """Devices and the models of theirs whose order, slots or served requests have changed."""
    rows = [{"device": device, "model": model} for device, model in sorted(set(pairs))]
    if rows:
        session.execute(insert(table_of(MovedDevice)), rows)


def note_presence(session: Session, devices: Iterable[str]) -> None:
    """Devices that have come, gone or been revoked."""
    note_moved(session, ((device, ALL_MODELS) for device in devices))


def note_presence_where(session: Session, *conditions: ColumnElement[bool]) -> None:
    """As `note_presence`, of the devices that meet conditions over `Device`."""
    found = select(Device.id, literal(ALL_MODELS)).where(*conditions)
    session.execute(insert(table_of(MovedDevice)).from_select(["device", "model"], found))
