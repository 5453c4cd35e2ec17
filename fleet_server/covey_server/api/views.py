"""Models, versions and builds as the API shows them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field

from covey_server.db.tables import Build, Version
from covey_server.registry import checks
from covey_server.registry.versions import ModelSummary


class BuildView(BaseModel):
    """One target of one version."""

    id: int
    model: str
    version: str
    target: str = Field(examples=["openvino-int8"])
    state: str = Field(description="queued, building, built, checked, refused, unsupported or failed")
    waiting_for: str = Field(
        description="a sentence while nobody can build this, with what a check of the graph has found; else empty"
    )
    reason: str = Field(description="why it was refused or failed, with the figure; or what a check found")
    digest: str | None = Field(description="SHA-256 of the manifest: the build's name on devices")
    size: int
    accuracy: dict[str, Any] | None = Field(description="metric of source and build on the same samples")
    latency: dict[str, Any] | None = Field(description="measured on the building machine")
    worker: str | None
    attempts: int
    created_ms: int
    started_ms: int | None
    finished_ms: int | None


class BuildDetail(BuildView):
    """A build with everything that was found out about it."""

    report: dict[str, Any] | None = Field(description="the worker's report: parity, accuracy, latency, tries, notes")
    manifest: str | None = Field(description="the signed manifest's exact bytes in base64")
    envelope: str | None = Field(description="the DSSE envelope around them in base64")


class FileView(BaseModel):
    sha256: str
    size: int


class VersionView(BaseModel):
    """One uploaded source of a model, with its builds."""

    model: str
    version: str
    created_ms: int
    created_by: str
    source_filename: str
    source: FileView
    calibration: FileView | None
    evaluation: FileView | None
    labels: FileView | None
    budget: float = Field(description="highest absolute drop of the metric that a build may have")
    metadata: dict[str, str]
    builds: list[BuildView]


class ModelView(BaseModel):
    name: str
    description: str
    created_ms: int
    versions: int = Field(description="how many there are")
    newest: str | None = Field(description="the version pushed last")


class ModelDetail(BaseModel):
    name: str
    description: str
    created_ms: int
    versions: list[VersionView] = Field(description="newest first")


def build_view(build: Build, version: Version, check: Build | None) -> BuildView:
    """`check` is the version's check of its graph for TensorRT, if it has one."""
    return BuildView(**_build_fields(build, version, check))


def build_detail(build: Build, version: Version, check: Build | None) -> BuildDetail:
    return BuildDetail(
        **_build_fields(build, version, check),
        report=build.report,
        manifest=base64.b64encode(build.manifest).decode() if build.manifest is not None else None,
        envelope=base64.b64encode(build.envelope).decode() if build.envelope is not None else None,
    )


def version_view(version: Version, builds: Sequence[Build], sizes: Mapping[str, int]) -> VersionView:
    def file(sha256: str | None) -> FileView | None:
        return FileView(sha256=sha256, size=sizes.get(sha256, 0)) if sha256 is not None else None

    return VersionView(
        model=version.model,
        version=version.name,
        created_ms=version.created_ms,
        created_by=version.created_by,
        source_filename=version.source_filename,
        source=FileView(sha256=version.source_blob, size=sizes.get(version.source_blob, 0)),
        calibration=file(version.calibration_blob),
        evaluation=file(version.evaluation_blob),
        labels=file(version.labels_blob),
        budget=version.budget,
        metadata=version.info,
        builds=[build_view(build, version, checks.among(builds)) for build in builds],
    )


def model_view(summary: ModelSummary) -> ModelView:
    model = summary.model
    return ModelView(
        name=model.name,
        description=model.description,
        created_ms=model.created_ms,
        versions=summary.versions,
        newest=summary.newest,
    )


def digests_of(versions: Sequence[Version]) -> list[str]:
    """The blobs that these versions name."""
    return [
        sha256
        for one in versions
        for sha256 in (one.source_blob, one.calibration_blob, one.evaluation_blob, one.labels_blob)
        if sha256 is not None
    ]


def _build_fields(build: Build, version: Version, check: Build | None) -> dict[str, Any]:
    report = build.report or {}
    return {
        "id": build.id,
        "model": version.model,
        "version": version.name,
        "target": build.target,
        "state": build.state,
        "waiting_for": checks.waiting_for(build, check),
        "reason": str(report.get("reason", "")),
        "digest": build.digest,
        "size": build.size,
        "accuracy": report.get("accuracy"),
        "latency": report.get("latency"),
        "worker": build.worker,
        "attempts": build.attempts,
        "created_ms": build.created_ms,
        "started_ms": build.started_ms,
        "finished_ms": build.finished_ms,
    }
