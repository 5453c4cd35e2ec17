"""Campaigns, the part of each device in them, and their logs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from covey_server.db.tables.base import Base, Id


class Campaign(Base):
    """A staged rollout of one version. `state`: planned, running, paused, halted, rolling_back, rolled_back, done, aborted, failed."""

    __tablename__ = "campaigns"
    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    model: Mapped[str] = mapped_column(String(64), index=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"))
    spec: Mapped[dict[str, Any]]  # the campaign file, validated
    source: Mapped[str] = mapped_column(Text)  # the campaign file, as written
    state: Mapped[str] = mapped_column(String(16), index=True)
    stage: Mapped[int] = mapped_column(default=0)
    stage_started_ms: Mapped[int | None]
    waiting_for: Mapped[str] = mapped_column(Text, default="")  # one sentence: why it does not move on
    verdict: Mapped[dict[str, Any] | None]  # the evidence of the gates at the last tick, or that which tripped
    created_ms: Mapped[int]
    created_by: Mapped[str] = mapped_column(String(64))
    started_ms: Mapped[int | None]
    halted_ms: Mapped[int | None]
    finished_ms: Mapped[int | None]


class CampaignDevice(Base):
    """A device's part in a campaign. `state`: planned, assigned, active, failed, rolling_back, rolled_back, restored_locally, skipped."""

    __tablename__ = "campaign_devices"
    __table_args__ = (Index("campaign_devices_by_state", "campaign_id", "stage", "state"),)
    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaigns.id"), primary_key=True)
    device: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    stage: Mapped[int]
    state: Mapped[str] = mapped_column(String(20))
    build_id: Mapped[int | None] = mapped_column(ForeignKey("builds.id"))  # None: left out, see `why`
    previous_build_id: Mapped[int | None] = mapped_column(ForeignKey("builds.id"))  # what it goes back to
    assignment: Mapped[str | None] = mapped_column(String(64))
    why: Mapped[dict[str, Any]] = mapped_column(default=dict)
    reason: Mapped[str] = mapped_column(String(32), default="none")
    detail: Mapped[str] = mapped_column(Text, default="")
    assigned_ms: Mapped[int | None]
    active_ms: Mapped[int | None]
    restored_ms: Mapped[int | None]


class CampaignEvent(Base):
    """The log of a campaign's decisions, with the evidence for each."""

    __tablename__ = "campaign_events"
    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=True)
    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaigns.id"), index=True)
    at_ms: Mapped[int]
    kind: Mapped[str] = mapped_column(String(32))  # started, stage_started, stage_passed, gate_breached, halted, …
    who: Mapped[str] = mapped_column(String(64))  # "campaign engine" or a person
    message: Mapped[str] = mapped_column(Text)
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)
