"""Who may do what, who did what, and small facts of the server itself."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from covey_server.db.tables.base import Base, Id


class Person(Base):
    """Somebody who logs in by name and password. Never deleted, since the audit log tells of them by name; disabled instead."""

    __tablename__ = "people"
    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(16))  # viewer, operator, approver, admin
    email: Mapped[str | None] = mapped_column(String(254))
    notify: Mapped[list[Any]] = mapped_column(default=list)  # the events that are mailed to them
    password: Mapped[str | None] = mapped_column(String(256))  # see people/passwords.py; None: none chosen yet
    password_ms: Mapped[int | None]  # when it was chosen
    created_ms: Mapped[int]
    created_by: Mapped[str] = mapped_column(String(64))
    last_login_ms: Mapped[int | None]
    disabled_ms: Mapped[int | None]


class LoginAttempt(Base):
    """How often somebody has tried to log in of late, see people/throttle.py. `key`: a hash of the name, the address, or both."""

    __tablename__ = "login_attempts"
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    attempts: Mapped[int]
    until_ms: Mapped[int]  # no further attempt before
    last_ms: Mapped[int] = mapped_column(index=True)


class ApiToken(Base):
    """A key to the API, of a person (`person_id`) or of a pipeline or part of the server. Only the hash is kept."""

    __tablename__ = "api_tokens"
    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(16))  # viewer, operator, approver, admin, worker
    person_id: Mapped[int | None] = mapped_column(ForeignKey("people.id"), index=True)
    models: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))  # what it may change; None: any
    by_login: Mapped[bool] = mapped_column(default=False)  # made by `covey login`, ends with "log out everywhere"
    secret_hash: Mapped[str] = mapped_column(String(64), unique=True)
    created_ms: Mapped[int]
    expires_ms: Mapped[int | None]
    last_used_ms: Mapped[int | None]
    revoked_ms: Mapped[int | None]


class ConsoleSession(Base):
    """A browser that is logged in. `kind` "code" is a one-time login code, "invite" a one-time right to choose a password,
    "session" a session. It belongs to a token or to a person."""

    __tablename__ = "console_sessions"
    secret_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    token_id: Mapped[int | None] = mapped_column(ForeignKey("api_tokens.id"), index=True)
    person_id: Mapped[int | None] = mapped_column(ForeignKey("people.id"), index=True)
    csrf: Mapped[str] = mapped_column(String(64))
    origin: Mapped[str] = mapped_column(String(64), default="")  # the address it was opened from
    created_ms: Mapped[int]
    expires_ms: Mapped[int]


class AuditEntry(Base):
    """Who did what, when, from where. Each entry's hash covers the one before; the database refuses to change or delete any."""

    __tablename__ = "audit"
    __table_args__ = (
        Index("audit_by_time", "at_ms"),
        Index("audit_by_who", "who", "id"),
        Index("audit_by_action", "action", "id"),
        Index("audit_by_object", "object", "id"),
    )
    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=True)  # 1, 2, 3 …, without gaps
    at_ms: Mapped[int]
    who: Mapped[str] = mapped_column(String(64))
    origin: Mapped[str] = mapped_column(String(128))
    action: Mapped[str] = mapped_column(String(64))  # "campaign.start"
    object: Mapped[str] = mapped_column(String(256))
    detail: Mapped[dict[str, Any]]
    previous_hash: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))


class Setting(Base):
    """Small facts of the server itself."""

    __tablename__ = "settings"
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(Text)
