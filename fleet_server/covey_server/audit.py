"""Who did what, when, from where: an append-only log in which each entry's hash covers the one before.

Invariant: `hash = SHA-256(previous_hash ‖ JSON of everything else in the entry)`, so a changed or removed entry breaks the
chain at the next one. An entry is written in the same transaction as the change that it tells of.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from covey_server.db.tables import AuditEntry

_GENESIS = "0" * 64
# Serialises writers of the chain on PostgreSQL; SQLite has one writer anyway.
_CHAIN_LOCK = 0x636F7679


@dataclass(frozen=True)
class Actor:
    """Who acts: the name of a token (or part of the server), its role, and from where."""

    name: str
    role: str
    origin: str


# The server's own doing, e.g. of the campaign engine.
SYSTEM = Actor("covey-server", "admin", "server")


def record(session: Session, actor: Actor, action: str, object: str, detail: dict[str, Any], now_ms: int) -> None:  # noqa: A002
    """Append an entry: `action` as "campaign.start", `object` the thing's name, `detail` JSON without secrets."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CHAIN_LOCK})
    session.flush()
    previous = session.scalar(select(AuditEntry.hash).order_by(AuditEntry.id.desc()).limit(1)) or _GENESIS
    entry = AuditEntry(
        at_ms=now_ms,
        who=actor.name[:64],
        origin=actor.origin[:64],
        action=action[:64],
        object=object[:256],
        detail=json.loads(json.dumps(detail)),
        previous_hash=previous,
    )
    entry.hash = _hash(entry)
    session.add(entry)
    session.flush()


def verify(session: Session) -> int | None:
    """The id of the first entry that does not follow from the one before; None if the chain is whole."""
    previous = _GENESIS
    for entry in session.scalars(select(AuditEntry).order_by(AuditEntry.id).execution_options(yield_per=1000)):
        if entry.previous_hash != previous or entry.hash != _hash(entry):
            return entry.id
        previous = entry.hash
    return None


def _hash(entry: AuditEntry) -> str:
    told = [entry.at_ms, entry.who, entry.origin, entry.action, entry.object, entry.detail]
    body = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(entry.previous_hash.encode() + body.encode()).hexdigest()
