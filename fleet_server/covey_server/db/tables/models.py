"""Models, their versions, and what these were built into."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from covey_server.db.tables.base import Base, Id


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
    traceparent: Mapped[str | None] = mapped_column(String(64))  # of the push, where it was traced


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
    traceparent: Mapped[str | None] = mapped_column(String(64))  # of the build, where it was traced
