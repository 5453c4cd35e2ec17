"""Who may do what, who did what, and small facts of the server itself."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from covey_server.db.tables.base import Base, Id


class ApiToken(Base):
    """A person's or a pipeline's key to the API. Only the hash is kept."""

    __tablename__ = "api_tokens"
    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(16))  # viewer, operator, approver, admin, worker
    secret_hash: Mapped[str] = mapped_column(String(64), unique=True)
    created_ms: Mapped[int]
    expires_ms: Mapped[int | None]
    last_used_ms: Mapped[int | None]
    revoked_ms: Mapped[int | None]


class ConsoleSession(Base):
    """A browser that is logged in. `kind` "code" is a one-time login code, "session" a session."""

    __tablename__ = "console_sessions"
    secret_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    token_id: Mapped[int] = mapped_column(ForeignKey("api_tokens.id"))
    csrf: Mapped[str] = mapped_column(String(64))
    created_ms: Mapped[int]
    expires_ms: Mapped[int]


class AuditEntry(Base):
    """Who did what, when, from where. Each entry's hash covers the one before."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=True)
    at_ms: Mapped[int]
    who: Mapped[str] = mapped_column(String(64))
    origin: Mapped[str] = mapped_column(String(64))
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
