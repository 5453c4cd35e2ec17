"""Orders to devices, and what devices say: of their deployments and of what they measure."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from covey_server.db.tables.base import Base, Id


class AssignmentRow(Base):
    """An order that was issued. The newest of a device and model is the desired one."""

    __tablename__ = "assignments"
    __table_args__ = (
        Index("assignments_by_device", "device", "counter"),
        Index("assignments_by_campaign", "campaign_id"),
        Index(
            "assignments_due",
            "due_ms",
            sqlite_where=text("due_ms IS NOT NULL"),
            postgresql_where=text("due_ms IS NOT NULL"),
        ),
    )
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    device: Mapped[str] = mapped_column(ForeignKey("devices.id"))
    counter: Mapped[int]
    model: Mapped[str] = mapped_column(String(64))
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"))
    build_id: Mapped[int] = mapped_column(ForeignKey("builds.id"))
    kind: Mapped[str] = mapped_column(String(16))  # rollout, rollback, manual
    campaign_id: Mapped[int | None] = mapped_column(ForeignKey("campaigns.id"))
    why: Mapped[dict[str, Any]] = mapped_column(default=dict)  # the choice and its reasons
    probation: Mapped[dict[str, Any]] = mapped_column(default=dict)
    conditions: Mapped[dict[str, Any] | None]  # `covey_contract.conditions.Conditions`; None: at once
    issued_ms: Mapped[int]
    expires_ms: Mapped[int]
    sent_ms: Mapped[int | None]
    due_ms: Mapped[int | None]  # when it is to be sent, again or at all; None: heard of, over, or its device is off
    state: Mapped[str] = mapped_column(String(16), default="issued")  # then a lifecycle `State`, or "superseded"
    reported_seq: Mapped[int | None]  # the highest number of a report about it
    reason: Mapped[str] = mapped_column(String(32), default="none")
    detail: Mapped[str] = mapped_column(Text, default="")
    progress: Mapped[float | None]
    bytes_fetched: Mapped[int] = mapped_column(default=0)
    updated_ms: Mapped[int]


class Desired(Base):
    """The assignment that counts for a device and model."""

    __tablename__ = "desired"
    device: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    model: Mapped[str] = mapped_column(String(64), primary_key=True)
    assignment: Mapped[str] = mapped_column(ForeignKey("assignments.id"))
    answers: Mapped[int] = mapped_column(
        default=0
    )  # requests that the build must answer before the device counts as served


class Reported(Base):
    """What a device last said of a model."""

    __tablename__ = "reported"
    __table_args__ = (Index("reported_by_state", "state", "device"),)
    device: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    model: Mapped[str] = mapped_column(String(64), primary_key=True)
    active: Mapped[str | None] = mapped_column(String(64), index=True)  # build digests
    answered: Mapped[int] = mapped_column(default=0)  # requests that `active` has answered since it became that
    previous: Mapped[str | None] = mapped_column(String(64))
    candidate: Mapped[str | None] = mapped_column(String(64))
    assignment: Mapped[str | None] = mapped_column(String(64))
    state: Mapped[str | None] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(32), default="none")
    detail: Mapped[str] = mapped_column(Text, default="")
    updated_ms: Mapped[int]


class MovedDevice(Base):
    """What has changed of a device since the campaigns last looked: its order, its slots, its presence, its served requests.

    Written in the transaction that makes the change, taken away in the one that follows it up. Append-only: two writers never
    wait for each other, and a change that is made while an earlier one is followed up has a row of its own.
    """

    __tablename__ = "moved_devices"
    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=True)
    device: Mapped[str] = mapped_column(String(64))
    model: Mapped[str] = mapped_column(String(64))  # "": all of the device's models


class ReportRow(Base):
    """The history of deployments on a device, as it was told. (device, seq) makes duplicates harmless."""

    __tablename__ = "reports"
    __table_args__ = (Index("reports_by_state", "state", "at_ms"),)
    device: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    at_ms: Mapped[int] = mapped_column(index=True)  # by the device's clock
    received_ms: Mapped[int]
    assignment: Mapped[str] = mapped_column(String(256))
    model: Mapped[str] = mapped_column(String(64))
    version: Mapped[str] = mapped_column(String(64))
    build: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(32))
    detail: Mapped[str] = mapped_column(Text)


class TelemetryRow(Base):
    """One build in one window of one device. `part` numbers the builds of one record; `histograms` holds `queue`, `compute` and
    `end_to_end` as JSON, and `batches` (inferences by rows), `outputs` and `inputs` the contract's `OutputCounts` and `InputCounts` by name."""

    __tablename__ = "telemetry"
    __table_args__ = (
        Index("telemetry_by_build", "build", "end_ms"),
        Index("telemetry_by_device", "device", "end_ms"),
        Index("telemetry_by_arrival", "received_ms"),
    )
    device: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    part: Mapped[int] = mapped_column(primary_key=True)
    start_ms: Mapped[int]
    end_ms: Mapped[int]
    received_ms: Mapped[int]
    model: Mapped[str] = mapped_column(String(64))
    version: Mapped[str] = mapped_column(String(64))
    build: Mapped[str] = mapped_column(String(64))
    probation: Mapped[bool]
    ok: Mapped[int]
    failed: Mapped[int]
    fallbacks: Mapped[int]
    errors: Mapped[dict[str, Any]]
    histograms: Mapped[dict[str, Any]]
    outputs: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default="{}")
    inputs: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default="{}")
    resources: Mapped[dict[str, Any] | None] = mapped_column(
        JSON(none_as_null=True)
    )  # the record's `Resources`, if it had any
