"""The outbox: what happened, written in the transaction of the change itself, and then addressed to whoever is to be told.

Invariants: a notice is made once, whoever makes it and however often (`source`); it is addressed once; deliveries are at least
once, and a receiver tells two of the same by the notice's key.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import String, cast, delete, func, insert, literal, or_, select
from sqlalchemy.orm import Session

from covey_server.db.tables import Campaign, CampaignEvent, Delivery, Notice, Person, Setting, Version, Webhook
from covey_server.fleet.sql import table_of
from covey_server.notifications.events import OF_CAMPAIGNS, EventName

PENDING, DELIVERED, DEAD = "pending", "delivered", "dead"
STATES = (PENDING, DELIVERED, DEAD)
_CURSOR = "notifications-campaign-events"
# On PostgreSQL an event with a lower id may be committed after one with a higher: those of late are looked at again.
_LOOK_BACK = 1000
_LATE_MS = 3_600_000
_BATCH = 200
_MAX_SUMMARY = 1000
_MAX_DETAIL_BYTES = 12_000
_UNSYNCED = {"synchronize_session": False}


@dataclass(frozen=True)
class Mailing:
    """The addresses that the settings name, and which events are mailed to them."""

    to: tuple[str, ...] = ()
    events: tuple[str, ...] = ()


def tell(session: Session, event: EventName, summary: str, data: dict[str, Any], source: str, now_ms: int) -> bool:
    """Put a notice into the outbox, in the caller's transaction; False if the same `source` was told already.

    `summary` is one sentence for people, `data` JSON without secrets. Cheap: one look and one row.
    """
    if session.scalar(select(Notice.id).where(Notice.source == source)) is not None:
        return False
    session.add(_notice(event, summary, data, source, now_ms))
    session.flush()
    return True


def tell_of_campaigns(session: Session, now_ms: int) -> int:
    """Make notices of what is new in the campaigns' logs; of how many lines. What was there before the first call is not told."""
    newest = session.scalar(select(func.max(CampaignEvent.id))) or 0
    kept = session.get(Setting, _CURSOR, with_for_update=True)
    if kept is None:
        session.add(Setting(key=_CURSOR, value=f"{newest} {newest}"))
        return 0
    first, last = map(int, kept.value.split())
    source = literal("campaign-event ").concat(cast(CampaignEvent.id, String(20)))
    rows = session.execute(
        select(CampaignEvent, Campaign.name, Campaign.model, Version.name.label("version"))
        .join(Campaign, Campaign.id == CampaignEvent.campaign_id)
        .join(Version, Version.id == Campaign.version_id)
        .where(
            CampaignEvent.id > max(first, last - _LOOK_BACK),
            CampaignEvent.kind.in_(OF_CAMPAIGNS),
            or_(CampaignEvent.id > last, CampaignEvent.at_ms > now_ms - _LATE_MS),
            ~select(Notice.id).where(Notice.source == source).exists(),
        )
        .order_by(CampaignEvent.id)
        .limit(_BATCH)
    ).all()
    for line, name, model, version in rows:
        data = {"campaign": name, "model": model, "version": version, "who": line.who, "detail": _bounded(line.detail)}
        summary = f"{name}: {line.message}"
        session.add(_notice(OF_CAMPAIGNS[line.kind], summary, data, f"campaign-event {line.id}", line.at_ms))
    reached = rows[-1][0].id if len(rows) == _BATCH else newest
    kept.value = f"{first} {max(last, reached)}"
    return len(rows)


def reached(session: Session) -> int | None:
    """The line of the campaigns' logs up to which has been told; None before the first time."""
    kept = session.get(Setting, _CURSOR)
    return None if kept is None else int(kept.value.split()[1])


def has_news(session: Session) -> bool:
    """Whether there may be something for `tell_of_campaigns` or `address`; a cheap look."""
    kept = session.get(Setting, _CURSOR)
    newest = session.scalar(select(func.max(CampaignEvent.id))) or 0
    if kept is None or newest > int(kept.value.split()[1]):
        return True
    return session.scalar(select(Notice.id).where(Notice.addressed_ms.is_(None)).limit(1)) is not None


def address(session: Session, mailing: Mailing, now_ms: int) -> int:
    """Make the deliveries of notices that have none yet, to whoever wants to be told now; how many deliveries."""
    query = select(Notice).where(Notice.addressed_ms.is_(None)).order_by(Notice.id).limit(_BATCH)
    notices = session.scalars(query.with_for_update(skip_locked=True)).all()
    if not notices:
        return 0
    hooks = session.execute(select(Webhook.id, Webhook.events).where(Webhook.disabled_ms.is_(None))).all()
    people = session.execute(
        select(Person.email, Person.notify).where(Person.disabled_ms.is_(None), Person.email.is_not(None))
    ).all()
    made: list[dict[str, Any]] = []
    for notice in notices:
        notice.addressed_ms = now_ms
        wanted = [hook.id for hook in hooks if not hook.events or notice.event in hook.events]
        mailed = list(mailing.to) if notice.event in mailing.events else []
        mailed += [person.email for person in people if notice.event in person.notify]
        made += [_delivery(notice.id, now_ms, webhook_id=hook) for hook in wanted]
        made += [_delivery(notice.id, now_ms, recipient=one) for one in dict.fromkeys(mailed)]
    if made:
        session.execute(insert(table_of(Delivery)), made)
    return len(made)


def tell_one(
    session: Session, summary: str, now_ms: int, *, webhook_id: int | None = None, recipient: str | None = None
) -> int:
    """A `webhook.test` for one receiver alone; the delivery's id."""
    notice = _notice("webhook.test", summary, {}, f"test {uuid.uuid4().hex}", now_ms)
    notice.addressed_ms = now_ms
    session.add(notice)
    session.flush()
    delivery = Delivery(**_delivery(notice.id, now_ms, webhook_id=webhook_id, recipient=recipient))
    session.add(delivery)
    session.flush()
    return delivery.id


def prune(session: Session, before_ms: int) -> None:
    """Forget notices from before, with their deliveries."""
    old = select(Notice.id).where(Notice.at_ms < before_ms).order_by(Notice.id).limit(10_000).scalar_subquery()
    session.execute(delete(Delivery).where(Delivery.notice_id.in_(old)), execution_options=_UNSYNCED)
    session.execute(delete(Notice).where(Notice.id.in_(old)), execution_options=_UNSYNCED)


def _notice(event: EventName, summary: str, data: dict[str, Any], source: str, at_ms: int) -> Notice:
    return Notice(
        key=f"msg_{uuid.uuid4().hex}",
        source=source,
        event=event,
        at_ms=at_ms,
        summary=summary[:_MAX_SUMMARY],
        data=data,
        addressed_ms=None,
    )


def _delivery(
    notice_id: int, now_ms: int, *, webhook_id: int | None = None, recipient: str | None = None
) -> dict[str, Any]:
    return {
        "notice_id": notice_id,
        "webhook_id": webhook_id,
        "recipient": recipient,
        "state": PENDING,
        "attempts": 0,
        "due_ms": now_ms,
        "error": "",
    }


def _bounded(detail: dict[str, Any]) -> dict[str, Any]:
    """Receivers take messages of some 20 kB; whoever wants all the evidence asks for the campaign's log."""
    return detail if len(json.dumps(detail)) <= _MAX_DETAIL_BYTES else {"left_out": True}
