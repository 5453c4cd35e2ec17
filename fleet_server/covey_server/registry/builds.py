"""The build queue: jobs that workers lease, and what came of them.

Invariants: a job is worked on by at most one lease at a time; a lease that expires gives the job back, until its attempts are
used up; only the holder of the lease may say how it ended; saying it twice is harmless. Every change of state is one UPDATE
that names the state it expects, so that workers may race.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.orm import Session

from covey_contract.building import MAX_BATCH_KEY, METRIC_KEY, BuildJob, BuildReport, LeaseRequest, Outcome, SourceFile
from covey_contract.envelope import Envelope, encode_envelope
from covey_contract.manifest import MAX_BATCH, Manifest, build_digest
from covey_server.db.tables import Blob, Build, Version
from covey_server.errors import Conflict, NotFound
from covey_server.notifications.outbox import tell

FINISHED = frozenset(outcome.value for outcome in Outcome)
# The statements' objects are read anew afterwards, or not at all.
_UNSYNCED = {"synchronize_session": False}
STATES = ("queued", "building", *sorted(FINISHED))


def queue(
    session: Session, version_id: int, targets: Sequence[str], can_build: Callable[[str], bool], now_ms: int
) -> list[Build]:
    """Queue builds for those targets that the version has none of yet; returns the new ones."""
    there = set(session.scalars(select(Build.target).where(Build.version_id == version_id)))
    new = [
        Build(
            version_id=version_id,
            target=target,
            state="queued",
            waiting_for="" if can_build(target) else f"a builder for {target} (none has come)",
            created_ms=now_ms,
        )
        for target in targets
        if target not in there
    ]
    session.add_all(new)
    session.flush()
    return new


def may_lease(session: Session, request: LeaseRequest, now_ms: int) -> bool:
    """Whether there is a job for this worker, or a lease that has expired; a cheap look before `lease`."""
    fits = _fits(request.targets)
    waiting = or_(Build.state == "queued", (Build.state == "building") & (Build.lease_expires_ms <= now_ms))
    return session.scalar(select(Build.id).where(waiting, fits).limit(1)) is not None


def lease(session: Session, request: LeaseRequest, now_ms: int) -> BuildJob | None:
    """The oldest job that this worker can do, leased to it; None if there is none."""
    fits = _fits(request.targets)
    # Whoever asks can build these: nothing waits for a builder any more.
    session.execute(
        update(Build).where(Build.state == "queued", Build.waiting_for != "", fits).values(waiting_for=""),
        execution_options=_UNSYNCED,
    )
    chosen = session.scalar(
        select(Build.id)
        .where(Build.state == "queued", fits)
        .order_by(Build.attempts, Build.id)
        .limit(1)
        .with_for_update(skip_locked=True)  # SQLite ignores it and needs it not: it has one writer
    )
    if chosen is None:
        return None
    key = secrets.token_hex(16)
    session.execute(
        update(Build)
        .where(Build.id == chosen, Build.state == "queued")
        .values(
            state="building",
            lease=key,
            worker=request.worker,
            lease_expires_ms=now_ms + request.seconds * 1000,
            attempts=Build.attempts + 1,
            started_ms=now_ms,
        ),
        execution_options=_UNSYNCED,
    )
    return _job(session, session.get_one(Build, chosen, populate_existing=True))


def renew(session: Session, build_id: int, lease_key: str, seconds: int, now_ms: int) -> int:
    """When the lease now expires, in ms. Raises `Conflict` if it is not, or no longer, the job's lease."""
    build = held(session, build_id, lease_key)
    expires_ms = now_ms + seconds * 1000
    build.lease_expires_ms = expires_ms
    return expires_ms


def held(session: Session, build_id: int, lease_key: str) -> Build:
    """The job, locked against others in a write transaction, if this lease holds it; else `NotFound` or `Conflict`."""
    build = get_build(session, build_id, lock=True)
    if build.state != "building" or build.lease != lease_key:
        raise Conflict(
            f"the lease on job {build_id} is stale: the job is {build.state}"
            + (" by another worker" if build.state == "building" else ""),
            code="stale_lease",
        )
    return build


def finished_before(session: Session, build_id: int, lease_key: str) -> Build | None:
    """The build, if this very lease has already finished it: the worker did not hear our answer and asks again."""
    build = get_build(session, build_id)
    return build if build.state in FINISHED and build.lease == lease_key else None


@dataclass(frozen=True)
class Signed:
    """A checked manifest and the release key's envelope around it."""

    manifest: Manifest
    payload: bytes
    envelope: Envelope


def finish(
    session: Session, build_id: int, lease_key: str, report: BuildReport, signed: Signed | None, now_ms: int
) -> Build:
    """Write down how a job ended. `signed` is there exactly if it was built."""
    build = held(session, build_id, lease_key)
    build.state = report.outcome.value
    build.report = msgspec.to_builtins(report)
    build.finished_ms = now_ms
    build.lease_expires_ms = None
    build.waiting_for = ""
    build.size = report.size
    if signed is not None:
        build.digest = build_digest(signed.payload)
        build.manifest = signed.payload
        build.envelope = encode_envelope(signed.envelope)
        build.size = signed.manifest.size
    session.flush()
    if report.outcome is Outcome.FAILED:
        _tell_failure(session, build, report.reason, now_ms)
    return build


def any_expired(session: Session, now_ms: int) -> bool:
    """Whether some lease has expired; a cheap look before `release_expired`."""
    expired = select(Build.id).where(Build.state == "building", Build.lease_expires_ms <= now_ms)
    return session.scalar(expired.limit(1)) is not None


def release_expired(session: Session, attempts: int, now_ms: int) -> list[int]:
    """Give back jobs whose lease has expired; those begun `attempts` times fail. Returns the ids of all that changed."""
    expired = [Build.state == "building", Build.lease_expires_ms <= now_ms]
    rows = session.execute(
        select(Build.id, Build.target, Build.attempts).where(*expired).with_for_update(skip_locked=True)
    ).all()
    again = [row.id for row in rows if row.attempts < attempts]
    gone = {"lease": None, "lease_expires_ms": None}
    if again:
        session.execute(
            update(Build).where(Build.id.in_(again), *expired).values(state="queued", **gone),
            execution_options=_UNSYNCED,
        )
    for row in rows:
        if row.attempts >= attempts:
            reason = f"its worker vanished {row.attempts} times while building it"
            report = BuildReport(target=row.target, outcome=Outcome.FAILED, reason=reason)
            failed: dict[str, Any] = {"state": "failed", "finished_ms": now_ms, "report": msgspec.to_builtins(report)}
            session.execute(
                update(Build).where(Build.id == row.id, *expired).values(**failed, **gone), execution_options=_UNSYNCED
            )
            _tell_failure(session, session.get_one(Build, row.id), reason, now_ms)
    return [row.id for row in rows]


def _tell_failure(session: Session, build: Build, reason: str, now_ms: int) -> None:
    version = session.get_one(Version, build.version_id)
    data = {"model": version.model, "version": version.name, "target": build.target, "build": build.id}
    summary = f"{version.model} {version.name}: {build.target} could not be built: {reason or 'no reason given'}"
    tell(session, "build.failed", summary, {**data, "reason": reason[:500]}, f"build {build.id} {now_ms}", now_ms)


def retry(session: Session, build_id: int, can_build: Callable[[str], bool]) -> Build:
    """Queue a build again that failed, was refused, is unsupported or was only checked. Raises `Conflict` for any other."""
    build = get_build(session, build_id, lock=True)
    if build.state not in FINISHED or build.state == "built":
        raise Conflict(f"build {build_id} is {build.state}; only one that did not succeed can be tried again")
    build.state = "queued"
    build.waiting_for = "" if can_build(build.target) else f"a builder for {build.target} (none has come)"
    build.attempts = 0
    build.lease = build.worker = build.report = None
    build.lease_expires_ms = build.started_ms = build.finished_ms = None
    build.size = 0
    return build


def get_build(session: Session, build_id: int, *, lock: bool = False) -> Build:
    found = session.get(Build, build_id, with_for_update=lock or None)
    if found is None:
        raise NotFound(f"there is no build {build_id}")
    return found


def find(
    session: Session, *, model: str | None, version: str | None, state: str | None, after: int, limit: int
) -> list[tuple[Build, Version]]:
    """Builds with their versions, by id, those after `after`."""
    query = select(Build, Version).join(Version, Version.id == Build.version_id).where(Build.id > after)
    if model is not None:
        query = query.where(Version.model == model)
    if version is not None:
        query = query.where(Version.name == version)
    if state is not None:
        query = query.where(Build.state == state)
    return list(session.execute(query.order_by(Build.id).limit(limit)).all())


def _fits(targets: Sequence[str]) -> ColumnElement[bool]:
    exact = [target for target in targets if not target.endswith("*")]
    stems = [target[:-1] for target in targets if target.endswith("*")]
    return or_(Build.target.in_(exact), *(Build.target.startswith(stem, autoescape=True) for stem in stems))


def _job(session: Session, build: Build) -> BuildJob:
    version = session.get_one(Version, build.version_id)
    return BuildJob(
        id=build.id,
        lease=build.lease or "",
        lease_expires_ms=build.lease_expires_ms or 0,
        model=version.model,
        version=version.name,
        target=build.target,
        source=_file(session, version.source_blob, version.source_filename),
        calibration=_optional(session, version.calibration_blob, "calibration.npz"),
        evaluation=_optional(session, version.evaluation_blob, "evaluation.npz"),
        labels=_optional(session, version.labels_blob, "labels.txt"),
        budget=version.budget,
        metric=str(version.info.get(METRIC_KEY, "")),
        max_batch=_max_batch(version.info),
        metadata=dict(version.info),
    )


def _max_batch(info: Mapping[str, str]) -> int:
    """As it was checked at the push; versions that were pushed before the key had a meaning may say anything."""
    text = info.get(MAX_BATCH_KEY, "")
    return min(max(int(text), 1), MAX_BATCH) if text.isascii() and text.isdigit() else 1


def _optional(session: Session, sha256: str | None, filename: str) -> SourceFile | None:
    return None if sha256 is None else _file(session, sha256, filename)


def _file(session: Session, sha256: str, filename: str) -> SourceFile:
    return SourceFile(filename=filename, size=session.get_one(Blob, sha256).size, sha256=sha256)
