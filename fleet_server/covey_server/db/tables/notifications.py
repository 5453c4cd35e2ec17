"""Whom to tell of what happens, and how far telling has got: an outbox, written with the change that it tells of."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from covey_server.db.tables.base import Base, Id


class Webhook(Base):
    """An address that is told of events by signed POST requests (Standard Webhooks). Secrets are sealed, see
    notifications/sealing.py."""

    __tablename__ = "webhooks"
    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    url: Mapped[str] = mapped_column(String(2048))
    events: Mapped[list[Any]] = mapped_column(default=list)  # empty: all
    secret: Mapped[bytes]
    previous_secret: Mapped[bytes | None]  # signs too until `previous_until_ms`
    previous_until_ms: Mapped[int | None]
    created_ms: Mapped[int]
    created_by: Mapped[str] = mapped_column(String(64))
    disabled_ms: Mapped[int | None]
    disabled_why: Mapped[str] = mapped_column(Text, default="")


class Notice(Base):
    """Something that happened and is to be told. `source` makes telling it twice impossible, e.g. "campaign-event 17"."""

    __tablename__ = "notices"
    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=True)
    key: Mapped[str] = mapped_column(String(64), unique=True)  # "msg_…", the same in every attempt
    source: Mapped[str] = mapped_column(String(128), unique=True)
    event: Mapped[str] = mapped_column(String(64))  # "campaign.halted"
    at_ms: Mapped[int] = mapped_column(index=True)
    summary: Mapped[str] = mapped_column(Text)  # one sentence for people
    data: Mapped[dict[str, Any]]
    addressed_ms: Mapped[int | None] = mapped_column(index=True)  # when its deliveries were made; None: not yet


class Delivery(Base):
    """One notice on its way to one receiver. `state`: pending, delivered, dead (given up; may be tried again by hand)."""

    __tablename__ = "deliveries"
    __table_args__ = (Index("deliveries_due", "state", "due_ms"),)
    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=True)
    notice_id: Mapped[int] = mapped_column(ForeignKey("notices.id", ondelete="CASCADE"), index=True)
    webhook_id: Mapped[int | None] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"), index=True)
    recipient: Mapped[str | None] = mapped_column(String(254))  # an e-mail address, where there is no webhook
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column(default=0)
    due_ms: Mapped[int]
    status: Mapped[int | None]  # of the last HTTP answer
    error: Mapped[str] = mapped_column(Text, default="")  # of the last attempt
    duration_ms: Mapped[int | None]  # of the last attempt
    finished_ms: Mapped[int | None]
