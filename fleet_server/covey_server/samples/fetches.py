"""What operators ask for: new fetches, and how they stand."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from covey_server.db.tables import Device, SampleFetch
from covey_server.errors import Conflict, Invalid, NotFound
from covey_server.fleet import groups
from covey_server.fleet.directory import get_device
from covey_server.fleet.sql import lock_devices
from covey_server.samples.desk import OPEN_STATES

MAX_DEVICES = 100  # of a group at once
NO_SAMPLES = "it keeps no samples (covey-agent run --capture-share), or has not said so yet"
MAY_NOT_LEAVE = "its own settings do not let samples leave it (covey-agent run --capture-send)"


class Asked(NamedTuple):
    """Fetches that were made, and why other devices of the group have none."""

    fetches: list[SampleFetch]
    skipped: dict[str, str]


def ask_device(session: Session, device: str, model: str | None, most: int, by: str, now_ms: int) -> SampleFetch:
    """Raises `NotFound`, or `Conflict` where it can be known that nothing would come of it."""
    lock_devices(session, [device])
    why = why_not(session, get_device(session, device))
    if why is not None:
        raise Conflict(f"{device}: {why[1]}", code=why[0])
    row = SampleFetch(
        device=device, model=model, most=most, state="waiting", asked_by=by, asked_ms=now_ms, found=0, fetched=0
    )
    row.left_out = row.bytes = 0
    row.reason, row.detail = "none", ""
    session.add(row)
    session.flush()
    return row


def ask_group(session: Session, group: str, model: str | None, most: int, by: str, now_ms: int) -> Asked:
    """Of all its devices that can be asked now. Raises `NotFound`, or `Invalid` for a group of too many."""
    query = groups.members_query(session, group).order_by(Device.id).limit(MAX_DEVICES + 1)
    devices = list(session.scalars(query))
    if len(devices) > MAX_DEVICES:
        raise Invalid(f"{group} has more than {MAX_DEVICES} devices; ask a smaller group", field="group")
    made, skipped = [], {}
    for device in devices:
        try:
            made.append(ask_device(session, device, model, most, by, now_ms))
        except Conflict as error:
            skipped[device] = error.detail.removeprefix(f"{device}: ")
    return Asked(made, skipped)


def why_not(session: Session, device: Device) -> tuple[str, str] | None:
    """Code and words of what stands against asking the device now; by its own word, which it is asked for again by the fetch."""
    if device.revoked_ms is not None:
        return "device_revoked", "it is revoked"
    if not device.online:
        return "device_offline", "it is not online"
    told = (device.resources or {}).get("capture")
    if told is None:
        return "no_samples", NO_SAMPLES
    if not told.get("may_leave"):
        return "samples_stay", MAY_NOT_LEAVE
    query = select(SampleFetch.id).where(SampleFetch.device == device.id, SampleFetch.state.in_(OPEN_STATES)).limit(1)
    if session.scalar(query) is not None:
        return "fetch_running", "its samples are being fetched already"
    return None


def get_fetch(session: Session, number: int) -> SampleFetch:
    row = session.get(SampleFetch, number)
    if row is None:
        raise NotFound(f"there is no fetch of samples {number}; they are forgotten with the samples")
    return row


def fetches_of(session: Session, device: str | None, limit: int, before: int | None = None) -> list[SampleFetch]:
    """The newest first."""
    query = select(SampleFetch).order_by(SampleFetch.id.desc()).limit(limit)
    if device is not None:
        query = query.where(SampleFetch.device == device)
    if before is not None:
        query = query.where(SampleFetch.id < before)
    return list(session.scalars(query))
