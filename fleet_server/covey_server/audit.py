"""Who did what, when, from where: an append-only log in which each entry's hash covers the one before.

Invariants: an entry is written in the same transaction as the change that it tells of; ids count up without gaps; entries are
hashed and checked by `covey_contract.audit_chain`; the database itself refuses to change, delete or insert between (triggers of
migration 0003). Whoever may drop triggers can still rewrite the log, which the chain then shows; and where its end was cut off,
the head that is kept apart shows that, unless they knew of it too. Exports kept elsewhere show the rest.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, select, text
from sqlalchemy.orm import Session

from covey_contract.audit_chain import GENESIS, Checked, Entry, Head, check
from covey_server.db.tables import AuditEntry, Setting
from covey_server.errors import Forbidden

# Serialises writers of the chain on PostgreSQL; SQLite has one writer anyway.
_CHAIN_LOCK = 0x636F7679
_HEAD = "audit-head"


@dataclass(frozen=True)
class Actor:
    """Who acts: the name of a person, or of a pipeline's token (or part of the server), its role, and from where.

    `models`: the models that its token may change; None for any.
    """

    name: str
    role: str
    origin: str
    models: tuple[str, ...] | None = None

    def check_model(self, model: str) -> None:
        """Raises `Forbidden` if it may not change this model, nor roll it out."""
        if self.models is not None and model not in self.models:
            raise Forbidden(f"this token is for {', '.join(self.models)} alone", code="other_model")


# The server's own doing, e.g. of the campaign engine.
SYSTEM = Actor("covey-server", "admin", "server")


def record(session: Session, actor: Actor, action: str, object: str, detail: dict[str, Any], now_ms: int) -> None:  # noqa: A002
    """Append an entry: `action` as "campaign.start", `object` the thing's name, `detail` JSON without secrets."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CHAIN_LOCK})
    session.flush()
    last = session.execute(select(AuditEntry.id, AuditEntry.hash).order_by(AuditEntry.id.desc()).limit(1)).first()
    number, previous = (last.id, last.hash) if last is not None else (0, GENESIS)
    entry = AuditEntry(
        id=number + 1,
        at_ms=now_ms,
        who=actor.name[:64],
        origin=actor.origin[:128],
        action=action[:64],
        object=object[:256],
        detail=json.loads(json.dumps(detail)),
        previous_hash=previous,
    )
    entry.hash = _plain(entry, "").computed()
    session.add(entry)
    head = session.get(Setting, _HEAD)
    if head is None:
        session.add(Setting(key=_HEAD, value=f"{entry.id} {entry.hash}"))
    else:
        head.value = f"{entry.id} {entry.hash}"
    session.flush()


def verify(session: Session, *anchors: Head) -> Checked:
    """Check the whole log, against the head that the server keeps apart and against `anchors`."""
    kept = session.get(Setting, _HEAD)
    if kept is not None:
        number, _, value = kept.value.partition(" ")
        anchors = (*anchors, Head(int(number), value))
    with closing(entries(session)) as found:  # a flaw ends the reading early
        return check(found, *anchors)


def entries(session: Session, query: Select[AuditEntry] | None = None) -> Generator[Entry]:
    """The log from its first entry on, a thousand at a time."""
    wanted = select(AuditEntry).order_by(AuditEntry.id) if query is None else query
    with closing(session.scalars(wanted.execution_options(yield_per=1000))) as found:
        for entry in found:
            yield _plain(entry, entry.hash)


def _plain(entry: AuditEntry, value: str) -> Entry:
    return Entry(
        entry.id,
        entry.at_ms,
        entry.who,
        entry.origin,
        entry.action,
        entry.object,
        entry.detail,
        entry.previous_hash,
        value,
    )
