"""The server's tables. Times are Unix times in milliseconds, digests SHA-256 in hex, signed things their exact bytes.

`desired` against `reported` is the state of the world: the newest assignment of each device and model, and what the device
says it runs. Everything else explains how that came about.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up only INTEGER primary keys


class Base(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON, int: BigInteger, bytes: LargeBinary}


# --- people -------------------------------------------------------------------------------------------------------


class ApiToken(Base):
    """A person's or a pipeline's key to the API. Only the hash is kept."""

    __tablename__ = "api_tokens"
    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(16))  # viewer, operator, admin, worker
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


# --- models -------------------------------------------------------------------------------------------------------


class Model(Base):
    __tablename__ = "models"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    description: Mapped[str] = mapped_column(Text, default="")
    created_ms: Mapped[int]


class Blob(Base):
    """A file in the blob store, named by its content."""

    __tablename__ = "blobs"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    size: Mapped[int]
    created_ms: Mapped[int]


class Version(Base):
    """One uploaded source of a model. The `*_blob` columns name files in the blob store."""

    __tablename__ = "versions"
    __table_args__ = (UniqueConstraint("model", "name"),)
    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=True)
    model: Mapped[str] = mapped_column(ForeignKey("models.name"))
    name: Mapped[str] = mapped_column(String(64))
    source_blob: Mapped[str] = mapped_column(ForeignKey("blobs.sha256"))
    source_filename: Mapped[str] = mapped_column(String(128))
    calibration_blob: Mapped[str | None] = mapped_column(ForeignKey("blobs.sha256"))
    evaluation_blob: Mapped[str | None] = mapped_column(ForeignKey("blobs.sha256"))
    labels_blob: Mapped[str | None] = mapped_column(ForeignKey("blobs.sha256"))
    budget: Mapped[float]
    info: Mapped[dict[str, Any]] = mapped_column("metadata", default=dict)
    created_ms: Mapped[int]
    created_by: Mapped[str] = mapped_column(String(64))


class Build(Base):
    """One target of one version: the job while it is worked on, then what came of it.

    `state`: "queued" (also: no worker of that kind has come yet, see `waiting_for`), "building" (leased), then "built", "checked",
    "refused", "unsupported" or "failed". `digest`, `manifest` and `envelope` are there once it is built, and only then.
    """

    __tablename__ = "builds"
    __table_args__ = (UniqueConstraint("version_id", "target"), Index("builds_by_state", "state"))
    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"))
    target: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    waiting_for: Mapped[str] = mapped_column(Text, default="")
    attempts: Mapped[int] = mapped_column(default=0)
    lease: Mapped[str | None] = mapped_column(String(64))
    worker: Mapped[str | None] = mapped_column(String(256))
    lease_expires_ms: Mapped[int | None]
    digest: Mapped[str | None] = mapped_column(String(64), unique=True)
    size: Mapped[int] = mapped_column(default=0)
    manifest: Mapped[bytes | None]  # the exact signed bytes
    envelope: Mapped[bytes | None]  # the release key's DSSE envelope around them
    report: Mapped[dict[str, Any] | None]  # a `BuildReport` as JSON
    created_ms: Mapped[int]
    started_ms: Mapped[int | None]
    finished_ms: Mapped[int | None]


# --- devices ------------------------------------------------------------------------------------------------------


class Device(Base):
    __tablename__ = "devices"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    profile: Mapped[str | None] = mapped_column(String(64), index=True)  # None: no profile matches
    profile_reason: Mapped[str] = mapped_column(Text, default="")
    simulated: Mapped[bool] = mapped_column(default=False)
    facts: Mapped[dict[str, Any]]
    facts_digest: Mapped[str] = mapped_column(String(64))
    labels: Mapped[dict[str, Any]] = mapped_column(default=dict)
    enrolled_ms: Mapped[int]
    last_seen_ms: Mapped[int | None]
    online: Mapped[bool] = mapped_column(default=False)
    boot_id: Mapped[str | None] = mapped_column(String(256))
    agent_version: Mapped[str] = mapped_column(String(64), default="")
    revoked_ms: Mapped[int | None]
    counter: Mapped[int] = mapped_column(default=0)  # of the newest assignment issued to it
    resources: Mapped[dict[str, Any] | None]  # the newest `Resources`


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


class AssignmentRow(Base):
    """An order that was issued. The newest of a device and model is the desired one."""

    __tablename__ = "assignments"
    __table_args__ = (
        Index("assignments_by_device", "device", "counter"),
        Index("assignments_by_campaign", "campaign_id"),
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
    issued_ms: Mapped[int]
    expires_ms: Mapped[int]
    sent_ms: Mapped[int | None]
    state: Mapped[str] = mapped_column(String(16), default="issued")  # then a lifecycle `State`, or "superseded"
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


class Reported(Base):
    """What a device last said of a model."""

    __tablename__ = "reported"
    device: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    model: Mapped[str] = mapped_column(String(64), primary_key=True)
    active: Mapped[str | None] = mapped_column(String(64), index=True)  # build digests
    previous: Mapped[str | None] = mapped_column(String(64))
    candidate: Mapped[str | None] = mapped_column(String(64))
    assignment: Mapped[str | None] = mapped_column(String(64))
    state: Mapped[str | None] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(32), default="none")
    detail: Mapped[str] = mapped_column(Text, default="")
    updated_ms: Mapped[int]


class ReportRow(Base):
    """The history of deployments on a device, as it was told. (device, seq) makes duplicates harmless."""

    __tablename__ = "reports"
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
    `end_to_end` as JSON."""

    __tablename__ = "telemetry"
    __table_args__ = (Index("telemetry_by_build", "build", "end_ms"), Index("telemetry_by_device", "device", "end_ms"))
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


# --- campaigns ----------------------------------------------------------------------------------------------------


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
