"""Devices, how they join, and their groups."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, Index, String, Text, UniqueConstraint, text
from sqlalchemy.engine.default import DefaultExecutionContext
from sqlalchemy.orm import Mapped, mapped_column

from covey_server.core.criticality import MEDIUM
from covey_server.core.draw import lot_of
from covey_server.db.tables.base import Base, Id


def _lot(context: DefaultExecutionContext) -> int:
    row: dict[str, Any] = context.get_current_parameters()  # type: ignore[no-untyped-call]  # as SQLAlchemy declares it
    return lot_of(row["id"])


class Device(Base):
    """`lot`, `site`, `criticality` and `timezone` follow from id, labels and facts; planning reads them a million at a time."""

    __tablename__ = "devices"
    __table_args__ = (
        Index("devices_by_kind", "profile", "facts_digest", "revoked_ms", "id"),
        Index("devices_by_state", "profile", "online", "simulated", "revoked_ms"),
        Index(
            "devices_revoked",
            "id",
            sqlite_where=text("revoked_ms IS NOT NULL"),
            postgresql_where=text("revoked_ms IS NOT NULL"),
        ),
        Index("devices_by_enrolment", "enrolled_ms"),
        Index("devices_by_lot", "lot"),
        Index("devices_by_site", "site"),
        Index("devices_by_certificate", "certificate_ends_ms"),
    )
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    lot: Mapped[int] = mapped_column(default=_lot)  # `covey_server.core.draw.lot_of(id)`
    profile: Mapped[str | None] = mapped_column(String(64))  # None: no profile matches
    profile_reason: Mapped[str] = mapped_column(Text, default="")
    simulated: Mapped[bool] = mapped_column(default=False)
    facts: Mapped[dict[str, Any]]
    facts_digest: Mapped[str] = mapped_column(String(64))
    labels: Mapped[dict[str, Any]] = mapped_column(default=dict)
    site: Mapped[str | None] = mapped_column(String(256))  # the label of that name
    criticality: Mapped[int] = mapped_column(default=MEDIUM)  # the label of that name as a number, 0 to 100
    timezone: Mapped[str] = mapped_column(String(64), default="UTC")  # of its facts
    enrolled_ms: Mapped[int]
    last_seen_ms: Mapped[int | None]
    online: Mapped[bool] = mapped_column(default=False)
    boot_id: Mapped[str | None] = mapped_column(String(256))
    agent_version: Mapped[str] = mapped_column(String(64), default="")
    revoked_ms: Mapped[int | None]
    counter: Mapped[int] = mapped_column(default=0)  # of the newest assignment issued to it
    resources: Mapped[dict[str, Any] | None]  # the newest `Resources`
    certificate_ends_ms: Mapped[int | None]  # of the one that it uses by its own word, or was given since


class ClaimTokenRow(Base):
    """A one-time right to enrol a device. Only the secret's hash is kept."""

    __tablename__ = "claim_tokens"
    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=True)
    secret_hash: Mapped[str] = mapped_column(String(64), unique=True)
    device: Mapped[str | None] = mapped_column(String(64))  # bound to this id, if given
    labels: Mapped[dict[str, Any]] = mapped_column(default=dict)
    groups: Mapped[list[Any]] = mapped_column(default=list)
    created_ms: Mapped[int]
    created_by: Mapped[str] = mapped_column(String(64))
    expires_ms: Mapped[int]
    used_ms: Mapped[int | None]
    used_by: Mapped[str | None] = mapped_column(String(64))


class Certificate(Base):
    __tablename__ = "certificates"
    serial: Mapped[str] = mapped_column(String(64), primary_key=True)
    device: Mapped[str] = mapped_column(ForeignKey("devices.id"), index=True)
    issued_ms: Mapped[int]
    not_after_ms: Mapped[int]
    revoked_ms: Mapped[int | None]


class RenewalRequest(Base):
    """A key that asks to follow a device's expired certificate. It goes when a certificate was given for it."""

    __tablename__ = "renewal_requests"
    __table_args__ = (UniqueConstraint("device", "key"), Index("renewal_requests_by_state", "state", "id"))
    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=True)
    device: Mapped[str] = mapped_column(ForeignKey("devices.id"))
    key: Mapped[str] = mapped_column(String(64))  # SHA-256 in hex of the public key that asks
    origin: Mapped[str] = mapped_column(String(128))
    asked_ms: Mapped[int]
    seen_ms: Mapped[int]  # when it asked last
    ended_ms: Mapped[int | None]  # of the certificate that was shown; None: a factory's
    state: Mapped[str] = mapped_column(String(16))  # waiting, approved, refused
    decided_ms: Mapped[int | None]
    decided_by: Mapped[str | None] = mapped_column(String(64))


class Group(Base):
    """A fixed list (members in `group_members`), or a selector over facts and labels."""

    __tablename__ = "groups"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    description: Mapped[str] = mapped_column(Text, default="")
    selector: Mapped[dict[str, Any] | None]  # {"labels.line": "a", "facts.architecture": "aarch64", "profile": "…"}
    created_ms: Mapped[int]


class GroupMember(Base):
    __tablename__ = "group_members"
    group: Mapped[str] = mapped_column("group_name", ForeignKey("groups.name", ondelete="CASCADE"), primary_key=True)
    device: Mapped[str] = mapped_column(ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True, index=True)
