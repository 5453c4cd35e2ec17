"""A batch of messages from devices, stored in one transaction: presence, slots, deployments, reports, telemetry.

Storing a batch twice is the same as storing it once. Unknown and revoked devices are ignored. Numbers are clamped and
texts cut to what the database takes, so that no device's words can spoil a batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from sqlalchemy import bindparam, insert, null, or_, select, update
from sqlalchemy.orm import Session

from covey_contract.facts import Facts
from covey_contract.messages import BuildWindow, Hello, Reply, Status, Telemetry
from covey_server.db.tables import Device, TelemetryRow
from covey_server.fleet.assignments import send_again
from covey_server.fleet.columns import clamp, clean
from covey_server.fleet.deployments import follow, note_answers
from covey_server.fleet.inbox import Incoming
from covey_server.fleet.moved import note_presence
from covey_server.fleet.sql import chunks, lock_devices, stored_keys, table_of

_MAX_ERROR_KINDS = 64
# A device that was heard of this lately is not written down as heard of again.
SEEN_MS = 2_000


@dataclass
class Outcome:
    """What was stored, and what is to be done once it is committed."""

    acks: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    hellos: dict[str, Hello] = field(default_factory=dict)
    facts_wanted: set[str] = field(default_factory=set)
    facts: list[tuple[str, Facts]] = field(default_factory=list)  # told by devices, not stored here
    replies: list[tuple[str, Reply]] = field(default_factory=list)
    devices: set[str] = field(default_factory=set)
    assignments: set[str] = field(default_factory=set)
    telemetry: set[str] = field(default_factory=set)
    windows: list[BuildWindow] = field(default_factory=list)  # that were not stored before
    ended: list[tuple[str, str]] = field(default_factory=list)  # deployments: model and final state
    ignored: int = 0  # of unknown or revoked devices
    foreign: int = 0  # reports about another device's assignment
    duplicates: int = 0


@dataclass
class _Presence:
    last_seen_ms: int | None
    online: bool
    boot_id: str | None
    agent_version: str
    counter: int
    facts_digest: str
    resources: dict[str, Any] | None
    before: _Presence | None = None  # as it was loaded

    @property
    def turned(self) -> bool:
        """It has come or gone."""
        return self.before is not None and self.online != self.before.online

    @property
    def to_be_told(self) -> bool:
        """Worth a write: more than a device that was heard of a moment ago being heard of again."""
        seen_before_ms = None if self.before is None else self.before.last_seen_ms
        recently = seen_before_ms is not None and (self.last_seen_ms or 0) - seen_before_ms < SEEN_MS
        return not recently or replace(self, last_seen_ms=seen_before_ms, before=None) != self.before


def store(session: Session, batch: Sequence[Incoming], now_ms: int) -> Outcome:
    """Raises what the database raises; then nothing of the batch is stored."""
    outcome = Outcome()
    lock_devices(session, (incoming.device for incoming in batch))
    presence = _load_presence(session, batch)
    known = [incoming for incoming in batch if incoming.device in presence]
    outcome.ignored = len(batch) - len(known)
    _note_presence(known, presence, outcome)
    followed = follow(session, known, now_ms)
    for device, seq in sorted(followed.acknowledged):
        outcome.acks[device].append(seq)
    outcome.assignments, outcome.foreign = followed.assignments, followed.foreign
    outcome.duplicates = followed.duplicates
    outcome.ended = followed.ended
    _store_telemetry(session, known, presence, outcome)
    _write_presence(session, known, presence, now_ms)
    outcome.devices.update(incoming.device for incoming in known)
    return outcome


def store_facts(session: Session, device: str, facts: Facts, profile: str | None, reason: str) -> None:
    session.execute(
        update(Device)
        .where(Device.id == device)
        .values(
            facts=msgspec.to_builtins(facts),
            facts_digest=facts.digest(),
            timezone=clean(facts.timezone, 64),
            simulated=facts.simulated,
            profile=profile,
            profile_reason=reason,
            agent_version=clean(facts.agent_version, 64),
        )
    )


# --- presence -----------------------------------------------------------------------------------------------------


def _load_presence(session: Session, batch: Sequence[Incoming]) -> dict[str, _Presence]:
    held = {}
    measured = any(isinstance(incoming.message, Telemetry) for incoming in batch)
    resources = Device.resources if measured else null().label("resources")
    for part in chunks(sorted({incoming.device for incoming in batch})):
        for row in session.execute(
            select(
                Device.id,
                Device.last_seen_ms,
                Device.online,
                Device.boot_id,
                Device.agent_version,
                Device.counter,
                Device.facts_digest,
                resources,
            ).where(Device.id.in_(part), Device.revoked_ms.is_(None))
        ):
            held[row.id] = here = _Presence(*row[1:])
            here.before = replace(here)
    return held


def _note_presence(known: Sequence[Incoming], presence: dict[str, _Presence], outcome: Outcome) -> None:
    for device, message, received_ms in known:
        here = presence[device]
        if isinstance(message, Status) and not message.online:
            # The will of an agent that has been started anew since says nothing of the new one.
            if here.boot_id in {None, message.boot_id}:
                here.online = False
            continue
        here.online, here.last_seen_ms = True, received_ms
        match message:
            case Hello():
                here.boot_id = clean(message.boot_id, 256)
                here.agent_version = clean(message.agent_version, 64)
                here.counter = max(here.counter, clamp(message.last_counter))
                outcome.hellos[device] = message
                if message.facts_digest == here.facts_digest:
                    outcome.facts_wanted.discard(device)
                else:
                    outcome.facts_wanted.add(device)
            case Reply():
                outcome.replies.append((device, message))
                if message.facts is not None:
                    outcome.facts.append((device, message.facts))
            case _:
                pass


def _write_presence(session: Session, known: Sequence[Incoming], presence: dict[str, _Presence], now_ms: int) -> None:
    heard = sorted({incoming.device for incoming in known if presence[incoming.device].to_be_told})
    devices = table_of(Device)
    told = ("online", "last_seen_ms", "boot_id", "agent_version")
    measured = {incoming.device for incoming in known if isinstance(incoming.message, Telemetry)}
    for names, some in (
        (told, [device for device in heard if device not in measured]),
        ((*told, "resources"), [device for device in heard if device in measured]),
    ):
        if some:
            session.execute(
                update(devices)
                .where(devices.c.id == bindparam("b_id"))
                .values({name: bindparam(name) for name in names}),
                [{"b_id": device} | {name: getattr(presence[device], name) for name in names} for device in some],
            )
    turned = [device for device in heard if presence[device].turned]
    note_presence(session, turned)
    send_again(session, [device for device in turned if presence[device].online], now_ms)
    greeted = sorted({incoming.device for incoming in known if isinstance(incoming.message, Hello)})
    if greeted:
        # A server restored from a backup may be behind its devices; counters only go up.
        session.execute(
            update(devices)
            .where(devices.c.id == bindparam("b_id"), devices.c.counter < bindparam("b_counter"))
            .values(counter=bindparam("b_counter")),
            [{"b_id": device, "b_counter": presence[device].counter} for device in greeted],
        )
    ends = {i.device: i.message.certificate_ends_ms for i in known if isinstance(i.message, Hello)}
    told_ends = [{"b_id": device, "b_ends": clamp(ms)} for device, ms in sorted(ends.items()) if ms is not None]
    if told_ends:
        same = devices.c.certificate_ends_ms == bindparam("b_ends")
        session.execute(
            update(devices)
            .where(devices.c.id == bindparam("b_id"), or_(devices.c.certificate_ends_ms.is_(None), ~same))
            .values(certificate_ends_ms=bindparam("b_ends")),
            told_ends,
        )


# --- telemetry ----------------------------------------------------------------------------------------------------


def _store_telemetry(
    session: Session, known: Sequence[Incoming], presence: dict[str, _Presence], outcome: Outcome
) -> None:
    records = {(i.device, i.message.seq): i for i in known if isinstance(i.message, Telemetry)}
    if not records:
        return
    stored = stored_keys(session, TelemetryRow.device, TelemetryRow.seq, set(records))
    outcome.duplicates += len(stored)
    rows = []
    answered: defaultdict[tuple[str, str, str], int] = defaultdict(int)
    for (device, seq), incoming in records.items():
        outcome.acks[device].append(seq)
        message = incoming.message
        assert isinstance(message, Telemetry)  # noqa: S101 - for the type checker
        _note_resources(presence[device], message)
        if (device, seq) in stored:
            continue
        outcome.telemetry.add(device)
        outcome.windows += message.windows
        rows += [_telemetry_row(incoming, message, part) for part in range(len(message.windows))]
        for window in message.windows:
            # A fallback was answered by another build.
            answered[device, window.model, window.build] += clamp(window.ok - window.fallbacks)
    if rows:
        session.execute(insert(table_of(TelemetryRow)), rows)
    note_answers(session, answered)


def _note_resources(here: _Presence, message: Telemetry) -> None:
    """Spooled records come late; the newest is kept, with its number and its time by the device's clock."""
    if message.resources is None or (here.resources or {}).get("seq", -1) > message.seq:
        return
    here.resources = {**msgspec.to_builtins(message.resources), "at_ms": message.end_ms, "seq": message.seq}


def _telemetry_row(incoming: Incoming, message: Telemetry, part: int) -> dict[str, Any]:
    window = message.windows[part]
    errors = {clean(key, 256): clamp(count) for key, count in list(window.errors.items())[:_MAX_ERROR_KINDS]}
    return {
        "device": incoming.device,
        "seq": message.seq,
        "part": part,
        "start_ms": message.start_ms,
        "end_ms": message.end_ms,
        "received_ms": incoming.received_ms,
        "model": window.model,
        "version": window.version,
        "build": window.build,
        "probation": window.probation,
        "ok": clamp(window.ok),
        "failed": clamp(sum(errors.values())),
        "fallbacks": clamp(window.fallbacks),
        "errors": errors,
        "histograms": {
            "queue": msgspec.to_builtins(window.queue),
            "compute": msgspec.to_builtins(window.compute),
            "end_to_end": msgspec.to_builtins(window.end_to_end),
            "batches": {str(rows): count for rows, count in window.batches.items()},
        },
        "outputs": msgspec.to_builtins(window.outputs, str_keys=True),
        "inputs": msgspec.to_builtins(window.inputs),
        "resources": None if message.resources is None else msgspec.to_builtins(message.resources),
    }
