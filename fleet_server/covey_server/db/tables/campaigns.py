"""Campaigns, the part of each device in them, and their logs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from covey_server.db.tables.base import Base, Id

# Written out, since SQLite takes a partial index only for a query that says the same in the same words.
TO_GO = "state IN ('planned', 'retrying')"
AT_WORK = "state = 'assigned'"
OFF = "off_since_ms IS NOT NULL"
UNSERVED = "state = 'active' AND NOT served"


class Campaign(Base):
    """A staged rollout of one version. `state`: planned, queued, running, paused, halted, rolling_back, rolled_back, done, aborted,
    failed."""

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
    paced: Mapped[bool] = mapped_column(default=False)  # orders go out bit by bit, to devices that are connected
    is_open: Mapped[bool] = mapped_column(default=False)  # done, and devices that come later are served
    going_back: Mapped[list[Any] | None]  # the stages that go back, or went; None: all
    meter: Mapped[dict[str, Any] | None]  # `covey_server.core.pace.Meter`
    admitted_ms: Mapped[int | None]  # when it last looked for devices that have come to match
    verdict: Mapped[dict[str, Any] | None]  # the evidence of the gates at the last tick, or that which tripped
    created_ms: Mapped[int]
    created_by: Mapped[str] = mapped_column(String(64))
    started_ms: Mapped[int | None]
    halted_ms: Mapped[int | None]
    finished_ms: Mapped[int | None]


class CampaignChoice(Base):
    """What was chosen for one kind of device when the campaign was planned, kept once however many devices there are of it."""

    __tablename__ = "campaign_choices"
    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaigns.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    build_id: Mapped[int | None] = mapped_column(ForeignKey("builds.id"))  # None: no build fits, see `why`
    why: Mapped[dict[str, Any]] = mapped_column(default=dict)  # `covey_server.campaigns.choice.Chosen.why`


class CampaignDevice(Base):
    """A device's part in a campaign. `state`: planned, assigned, active, failed, retrying, rolling_back, rolled_back,
    restored_locally, skipped.

    `order_kind`, `heard`, `waiting`, `served` and `off_since_ms` repeat what orders and devices say, so that the covering index alone
    answers how far each stage is; `campaigns.following` keeps them.

    It has no foreign keys: its rows are made by statements that read campaigns, devices and builds, none of which is ever deleted,
    and PostgreSQL's check of each row of a million would cost more than all the rest of planning.
    """

    __tablename__ = "campaign_devices"
    __table_args__ = (
        Index(
            "campaign_devices_by_state",
            "campaign_id",
            "state",
            "stage",
            "order_kind",
            "heard",
            "waiting",
            "served",
            "off_since_ms",
            "active_ms",
            "restored_ms",
        ),
        # Those that may get an order: a paced campaign counts and picks them at every look.
        Index(
            "campaign_devices_to_go",
            "campaign_id",
            "stage",
            "timezone",
            "off_since_ms",
            "due_ms",
            sqlite_where=text(TO_GO),
            postgresql_where=text(TO_GO),
        ),
        Index(
            "campaign_devices_at_work",
            "campaign_id",
            "begun_ms",
            sqlite_where=text(AT_WORK),
            postgresql_where=text(AT_WORK),
        ),
        # Those that a look counts by the time: few of a fleet, as a rule.
        Index(
            "campaign_devices_off",
            *("campaign_id", "state", "stage", "order_kind", "heard", "waiting", "served", "off_since_ms"),
            sqlite_where=text(OFF),
            postgresql_where=text(OFF),
        ),
        Index(
            "campaign_devices_unserved",
            *("campaign_id", "state", "stage", "order_kind", "heard", "waiting", "served", "active_ms"),
            sqlite_where=text(UNSERVED),
            postgresql_where=text(UNSERVED),
        ),
        Index(
            "campaign_devices_drifted",
            "campaign_id",
            "device",
            sqlite_where=text("drifted_ms IS NOT NULL"),
            postgresql_where=text("drifted_ms IS NOT NULL"),
        ),
    )
    campaign_id: Mapped[int] = mapped_column(Id, primary_key=True)
    device: Mapped[str] = mapped_column(String(64), primary_key=True)
    stage: Mapped[int]  # -1: left out
    state: Mapped[str] = mapped_column(String(20))
    choice: Mapped[int | None]  # the number of its `CampaignChoice`
    build_id: Mapped[int | None] = mapped_column(Id)  # None: left out, see `detail`
    previous_build_id: Mapped[int | None] = mapped_column(Id)  # what it goes back to
    assignment: Mapped[str | None] = mapped_column(String(64))
    order_kind: Mapped[str | None] = mapped_column(String(16))  # of `assignment`: rollout or rollback
    heard: Mapped[bool] = mapped_column(default=False)  # the device has said a word of that order
    waiting: Mapped[bool] = mapped_column(
        default=False
    )  # it holds the build, and a condition of the order does not hold yet
    # It has answered as many requests with the build as were asked for.
    served: Mapped[bool] = mapped_column(default=False)
    attempts: Mapped[int] = mapped_column(default=0)  # orders of the version that it has had
    begun_ms: Mapped[int | None]  # when it set to work on the newest
    due_ms: Mapped[int | None]  # when it is to get another; None: as soon as it may
    timezone: Mapped[str | None] = mapped_column(String(64))  # where maintenance windows matter
    off_since_ms: Mapped[int | None]  # when a device that is off was last heard of; None: it is connected
    reason: Mapped[str] = mapped_column(String(32), default="none")
    detail: Mapped[str] = mapped_column(Text, default="")
    assigned_ms: Mapped[int | None]
    active_ms: Mapped[int | None]
    restored_ms: Mapped[int | None]
    drifted_ms: Mapped[int | None]  # when it was found to run something else than the campaign left it on


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
