"""Samples that were fetched from devices, and the fetches that brought them."""

from __future__ import annotations

from sqlalchemy import ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from covey_server.db.tables.base import Base, Id


class SampleFetch(Base):
    """What an operator asked of one device. `state`: waiting, running, done, failed; `reason` and `detail` say why it failed, or why it
    did not bring all that it found."""

    __tablename__ = "sample_fetches"
    __table_args__ = (Index("sample_fetches_by_device", "device", "id"), Index("sample_fetches_by_state", "state"))
    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=True)
    device: Mapped[str] = mapped_column(ForeignKey("devices.id"))
    model: Mapped[str | None] = mapped_column(String(64))  # None: of every model
    most: Mapped[int]  # new samples that it may bring
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(32), default="none")
    detail: Mapped[str] = mapped_column(Text, default="")
    asked_by: Mapped[str] = mapped_column(String(64))
    asked_ms: Mapped[int]
    ended_ms: Mapped[int | None]
    found: Mapped[int] = mapped_column(default=0)  # to be brought
    fetched: Mapped[int] = mapped_column(default=0)  # of them, that are here
    left_out: Mapped[int] = mapped_column(default=0)  # of them, gone on the device or no samples
    bytes: Mapped[int] = mapped_column(default=0)


class Sample(Base):
    """One sample; its file lies in the folder `samples` under its SHA-256. `name` is its name on the device."""

    __tablename__ = "samples"
    __table_args__ = (
        UniqueConstraint("device", "model", "name"),
        UniqueConstraint("device", "sha256"),
        Index("samples_by_model", "model", "id"),
        Index("samples_by_file", "sha256"),
        Index("samples_by_age", "fetched_ms"),
    )
    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=True)
    device: Mapped[str] = mapped_column(ForeignKey("devices.id"))
    model: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(64))
    sha256: Mapped[str] = mapped_column(String(64))
    size: Mapped[int]
    version: Mapped[str] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(String(64))
    build: Mapped[str] = mapped_column(String(64))
    time_ms: Mapped[int]  # by the device's clock, when the request was answered
    request: Mapped[str] = mapped_column(String(256), default="")  # its id, as the caller gave it
    fetched_ms: Mapped[int]
