"""Models: the list, and one model's versions with the matrix of their builds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import func, select, true
from sqlalchemy.orm import Session

from covey_contract.building import Accuracy, Latency
from covey_server.campaigns import choice
from covey_server.db.tables import Build, Device, Model, Reported, Version
from covey_server.errors import NotFound
from covey_server.registry import checks, versions
from covey_server.registry.versions import ModelSummary

MATRIX_VERSIONS = 12
MAX_KINDS = 50
PAGE = 50


@dataclass(frozen=True)
class BuildCell:
    """One target of one version. `shown` is the state in the console's words: a queued build that nobody can build waits for
    a builder. `reason` says why it was refused or failed, or what a check has found."""

    id: int
    target: str
    state: str
    shown: str
    waiting_for: str
    reason: str
    size: int
    digest: str | None
    accuracy: Accuracy | None
    latency: Latency | None
    source_latency: Latency | None
    recipe: str
    notes: list[str]
    worker: str | None
    finished_ms: int | None
    devices: int


@dataclass(frozen=True)
class VersionRow:
    version: Version
    cells: dict[str, BuildCell]
    source_size: int

    @property
    def ready(self) -> int:
        return sum(1 for cell in self.cells.values() if cell.state == "built")

    @property
    def wanted(self) -> int:
        """How many may become ready; what was only checked never does."""
        return sum(1 for cell in self.cells.values() if cell.state != "checked")


@dataclass(frozen=True)
class ModelPage:
    model: Model
    rows: list[VersionRow]
    targets: list[str]
    chosen: VersionRow | None
    more: bool


@dataclass(frozen=True)
class KindChoice:
    """What the devices of one profile with the same answer get: a target, or nothing, and why; `lost` tells the others."""

    profile: str | None
    devices: int
    target: str | None
    reason: str
    lost: list[tuple[str, str]]


@dataclass(frozen=True)
class ModelList:
    items: list[ModelSummary]
    devices: dict[str, int]
    next: str | None


def models(session: Session, after: str) -> ModelList:
    found = versions.list_models(session, after, PAGE + 1)
    counts = session.execute(
        select(Reported.model, func.count())
        .join(Device, Device.id == Reported.device)
        .where(Device.revoked_ms.is_(None), Reported.active.is_not(None))
        .group_by(Reported.model)
    )
    devices = {name: count for name, count in counts}
    return ModelList(found[:PAGE], devices, found[PAGE - 1].model.name if len(found) > PAGE else None)


def model(session: Session, name: str, chosen: str | None) -> ModelPage:
    """The newest versions with their builds; `chosen` is the one that is shown in full, by default the newest.

    Raises `NotFound`.
    """
    held = versions.get_model(session, name)
    query = select(Version).where(Version.model == name).order_by(Version.id.desc()).limit(MATRIX_VERSIONS + 1)
    newest = list(session.scalars(query))
    shown = newest[:MATRIX_VERSIONS]
    if chosen is not None and chosen not in {one.name for one in shown}:
        shown.append(versions.get_version(session, name, chosen))
    builds = versions.builds_by_version(session, shown)
    devices = _devices(session, [build for one in builds.values() for build in one])
    sizes = versions.sizes(session, [one.source_blob for one in shown])
    rows = [
        VersionRow(
            one,
            {
                build.target: cell(build, checks.among(builds[one.id]), devices.get(build.digest or "", 0))
                for build in builds[one.id]
            },
            sizes.get(one.source_blob, 0),
        )
        for one in shown
    ]
    targets = sorted({target for row in rows for target in row.cells})
    wanted = next((row for row in rows if chosen in (None, row.version.name)), None)
    return ModelPage(held, rows, targets, wanted, len(newest) > MATRIX_VERSIONS)


def choices(session: Session, name: str, version: str) -> list[KindChoice]:
    """Which kind of device would get which build of this version. Raises `NotFound`."""
    found = versions.get_version(session, name, version)
    kinds = choice.kinds_of(session, true())
    merged: dict[tuple[str | None, str | None, str], KindChoice] = {}
    for kind, chosen in zip(kinds, choice.choose_for(session, found.id, kinds, "rank"), strict=True):
        key = (kind.profile or None, chosen.target, chosen.reason)
        before = merged[key].devices if key in merged else 0
        lost = [(str(one["target"]), str(one["reason"])) for one in chosen.why.get("lost", ())]
        merged[key] = KindChoice(kind.profile or None, before + kind.devices, chosen.target, chosen.reason, lost)
    return sorted(merged.values(), key=lambda one: (-one.devices, one.profile or "", one.target or ""))[:MAX_KINDS]


def build(session: Session, build_id: int) -> tuple[Build, Version, BuildCell]:
    """Raises `NotFound`."""
    found = session.get(Build, build_id)
    version = session.get(Version, found.version_id) if found is not None else None
    if found is None or version is None:
        raise NotFound(f"there is no build {build_id}")
    check = checks.of_versions(session, [version.id]).get(version.id)
    return found, version, cell(found, check, _devices(session, [found]).get(found.digest or "", 0))


def cell(row: Build, check: Build | None, devices: int) -> BuildCell:
    """`check` is the version's check of its graph for TensorRT, if it has one."""
    report = row.report or {}
    waiting = checks.waiting_for(row, check)
    return BuildCell(
        id=row.id,
        target=row.target,
        state=row.state,
        shown="waiting_for_builder" if waiting else row.state,
        waiting_for=waiting,
        reason=str(report.get("reason", "")),
        size=row.size or int(report.get("size", 0) or 0),
        digest=row.digest,
        accuracy=_part(report.get("accuracy"), Accuracy),
        latency=_part(report.get("latency"), Latency),
        source_latency=_part(report.get("source_latency"), Latency),
        recipe=str(report.get("recipe", "")),
        notes=[str(note) for note in report.get("notes", ())][:20],
        worker=row.worker,
        finished_ms=row.finished_ms,
        devices=devices,
    )


def _part(stored: Any, kind: Any) -> Any:
    """A report comes from a worker and was checked when it came; one of an older Covey may still lack a field."""
    if stored is None:
        return None
    try:
        return msgspec.convert(stored, kind)
    except msgspec.ValidationError:
        return None


def _devices(session: Session, builds: list[Build]) -> dict[str, int]:
    digests = [one.digest for one in builds if one.digest is not None]
    counts = session.execute(
        select(Reported.active, func.count()).where(Reported.active.in_(digests)).group_by(Reported.active)
    )
    return {str(digest): count for digest, count in counts}
