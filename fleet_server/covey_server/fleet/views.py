"""Devices as the API and the console show them. Times are Unix times in milliseconds, builds are named by their digests."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class BuildRef(BaseModel):
    """A build that a device holds; without version and target if the server does not know it."""

    digest: str
    id: int | None = None
    version: str | None = None
    target: str | None = None
    size: int | None = None


class DesiredView(BaseModel):
    """The assignment that counts for a device and model, and how far the device is with it."""

    assignment: str
    counter: int
    action: str = Field(description="run or remove")
    version: str
    target: str
    build: str | None
    build_id: int
    kind: str = Field(description="rollout, rollback or manual")
    campaign: str | None
    state: str = Field(description="issued, a lifecycle state, or superseded")
    reason: str
    detail: str
    progress: float | None = Field(description="0 to 1 while fetching")
    bytes_fetched: int
    issued_ms: int
    sent_ms: int | None
    expires_ms: int
    updated_ms: int
    why: dict[str, Any] = Field(description="the choice of this build, and why each other one lost")


class ModelOnDevice(BaseModel):
    """One model on a device: what it says it holds, and what it should run."""

    model: str
    active: BuildRef | None = None
    previous: BuildRef | None = None
    candidate: BuildRef | None = None
    state: str | None = Field(default=None, description="of the newest deployment, as the device reports it")
    reason: str = "none"
    detail: str = ""
    updated_ms: int | None = None
    desired: DesiredView | None = None

    @property
    def on_target(self) -> bool:
        """Whether the device runs what it should."""
        return self.desired is not None and self.active is not None and self.active.digest == self.desired.build


class DeviceView(BaseModel):
    id: str
    profile: str | None = Field(description="firmware profile; null: none matches")
    simulated: bool = Field(description="its facts come from a file, not from the machine")
    online: bool
    last_seen_ms: int | None
    enrolled_ms: int
    revoked_ms: int | None
    agent_version: str
    board: str
    architecture: str
    labels: dict[str, str]
    certificate_ends_ms: int | None = Field(description="of the certificate that it uses")
    models: list[ModelOnDevice]


class RenewalView(BaseModel):
    """A key that asks to follow a device's certificate after its end."""

    device: str
    key: str = Field(description="SHA-256 in hex of the public key")
    origin: str = Field(description="from where it asked last")
    asked_ms: int
    seen_ms: int = Field(description="when it asked last")
    ended_ms: int | None = Field(description="when the certificate that it showed ended; null: a factory's was shown")
    state: str = Field(description="waiting, approved or refused")
    decided_ms: int | None
    decided_by: str | None


class CertificateView(BaseModel):
    serial: str
    issued_ms: int
    not_after_ms: int
    revoked_ms: int | None


class CaptureView(BaseModel):
    """Samples of requests and answers that the device keeps for labelling."""

    share: float = Field(description="of the answered requests, 0 to 1")
    samples: int
    held_mb: float
    limit_mb: float
    dropped: int = Field(description="chosen and not kept, since its gateway started")
    may_leave: bool = Field(description="whether its own settings let operators fetch them")


class DeviceDetail(DeviceView):
    profile_reason: str = Field(description="why this profile, or why none")
    facts: dict[str, Any]
    facts_digest: str
    groups: list[str]
    boot_id: str | None
    counter: int = Field(description="of the newest assignment issued to it")
    resources: dict[str, Any] | None = Field(description="what the agent used when it last said so")
    capture: CaptureView | None = Field(description="null: it keeps no samples, or has not said so")
    certificates: list[CertificateView]
    renewals: list[RenewalView] = Field(description="keys that wait for an operator, or were decided on")


class ReportView(BaseModel):
    seq: int
    at_ms: int = Field(description="by the device's clock")
    received_ms: int
    assignment: str
    model: str
    version: str
    build: str
    state: str
    reason: str
    detail: str


class LatencyView(BaseModel):
    """In milliseconds, from the device's histogram; null where nothing was measured."""

    count: int
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    max_ms: float | None


class TelemetryView(BaseModel):
    start_ms: int
    end_ms: int
    model: str
    version: str
    build: str
    probation: bool
    ok: int
    failed: int
    fallbacks: int
    errors: dict[str, int]
    queue: LatencyView
    compute: LatencyView
    end_to_end: LatencyView
    batches: dict[int, int] = Field(description="inferences by their rows, of builds whose rows may go together")


class GroupView(BaseModel):
    name: str
    description: str
    selector: dict[str, Any] | None = Field(description="null for a fixed list and for `all`")
    fixed: bool
    count: int = Field(description="devices in it now")
    created_ms: int | None


class GroupDetail(GroupView):
    devices: list[str] = Field(description="the first 1000 by id")
