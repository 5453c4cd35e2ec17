"""Which build of a version fits which device, and why: from the database to `covey_profiles.select` and back.

Devices with the same firmware profile and the same facts are of one kind and get the same answer, so each kind is asked about
once, however many devices it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, func
from sqlalchemy import select as sql_select
from sqlalchemy.orm import Session

from covey_contract.building import BuildReport
from covey_contract.facts import Facts
from covey_contract.manifest import Manifest
from covey_contract.wire import decode
from covey_profiles import Candidate, Choice, Objective, Profile, load_profiles, select, targets_for
from covey_server.db.tables import AssignmentRow, Build, Desired, Device, Version
from covey_server.errors import NotFound
from covey_server.fleet.sql import chunks

# What a version is built for while no device is enrolled that would say.
DEFAULT_TARGETS = ("onnxruntime-fp32", "onnxruntime-int8", "openvino-fp16", "openvino-int8", "tflite-int8")


@dataclass(frozen=True)
class Chosen:
    """`build_id` and `target` are None where no build fits; `reason` is one sentence either way. `why` is kept with the
    assignment: {profile, profile_reason, objective, chosen: {target, build, reason} | null, lost: [{target, reason}]}."""

    build_id: int | None
    target: str | None
    reason: str
    why: dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """Devices with the same firmware profile ("" for none) and the same facts; `device` is one of them."""

    profile: str
    facts_digest: str
    device: str
    devices: int


def kinds_of(session: Session, condition: ColumnElement[bool]) -> list[Kind]:
    """The kinds among the devices that are not revoked and meet the condition."""
    profile = func.coalesce(Device.profile, "")
    rows = session.execute(
        sql_select(profile, Device.facts_digest, func.min(Device.id), func.count())
        .where(Device.revoked_ms.is_(None), condition)
        .group_by(Device.profile, Device.facts_digest)
    )
    return [Kind(*row) for row in rows]


def choose_for(session: Session, version_id: int, kinds: Sequence[Kind], objective: Objective) -> list[Chosen]:
    """The answer for each kind, in their order."""
    builds = session.scalars(sql_select(Build).where(Build.version_id == version_id).order_by(Build.target)).all()
    profiles = load_profiles()
    candidates = [_candidate(build) for build in builds]
    chosen = []
    for part in chunks(kinds):
        examples = {
            row.id: row
            for row in session.execute(
                sql_select(Device.id, Device.profile_reason, Device.facts).where(
                    Device.id.in_([kind.device for kind in part])
                )
            )
        }
        for kind in part:
            example = examples[kind.device]
            facts = msgspec.convert(example.facts, Facts)
            choice = _ask(profiles.get(kind.profile), example.profile_reason, facts, candidates, objective)
            chosen.append(_for_kind(kind.profile or None, example.profile_reason, choice, objective))
    return chosen


def choose(session: Session, version_id: int, device: str, objective: Objective) -> Chosen:
    """For one device. Raises `NotFound`."""
    row = session.execute(sql_select(Device.profile, Device.facts_digest).where(Device.id == device)).one_or_none()
    if row is None:
        raise NotFound(f"no device is called {device!r}")
    return choose_for(session, version_id, [Kind(row.profile or "", row.facts_digest, device, 1)], objective)[0]


def targets_needed(session: Session) -> list[str]:
    """What a version should be built for: what the profile of any enrolled device can use, or the defaults without devices."""
    profiles = load_profiles()
    kinds = session.execute(
        sql_select(func.min(Device.id), Device.profile)
        .where(Device.revoked_ms.is_(None), Device.profile.is_not(None))
        .group_by(Device.profile, Device.facts_digest)
    ).all()
    needed = {
        target
        for device, profile in kinds
        if profile in profiles
        for target in targets_for(profiles[profile], _facts(session, device))
    }
    return sorted(needed) or list(DEFAULT_TARGETS)


def why(
    session: Session, device: str, model: str, version: str | None, objective: Objective = "rank"
) -> dict[str, Any]:
    """Why this device runs what it runs, or would run of `version`. Without one: what was decided when its assignment was
    made; where it has none, what would be chosen of the newest version. Raises `NotFound`."""
    if session.get(Device, device) is None:
        raise NotFound(f"no device is called {device!r}")
    if version is None:
        order = session.execute(
            sql_select(AssignmentRow, Version.name)
            .join(Desired, Desired.assignment == AssignmentRow.id)
            .join(Version, Version.id == AssignmentRow.version_id)
            .where(Desired.device == device, Desired.model == model)
        ).one_or_none()
        if order is not None and "chosen" in order[0].why:
            return {
                "device": device,
                "model": model,
                "version": order[1],
                "decided_ms": order[0].issued_ms,
                **order[0].why,
            }
        version = order[1] if order is not None else _newest(session, model)
    found = session.scalar(sql_select(Version).where(Version.model == model, Version.name == version))
    if found is None:
        raise NotFound(f"there is no version {version} of model {model}")
    chosen = choose(session, found.id, device, objective)
    return {"device": device, "model": model, "version": version, "decided_ms": None, **chosen.why}


def _newest(session: Session, model: str) -> str:
    newest = session.scalar(
        sql_select(Version.name)
        .where(Version.model == model)
        .order_by(Version.created_ms.desc(), Version.id.desc())
        .limit(1)
    )
    if newest is None:
        raise NotFound(f"there is no model {model} with a version")
    return newest


def _facts(session: Session, device: str) -> Facts:
    return msgspec.convert(session.scalar(sql_select(Device.facts).where(Device.id == device)), Facts)


def _ask(
    profile: Profile | None,
    profile_reason: str,
    facts: Facts,
    candidates: Sequence[Candidate],
    objective: Objective,
) -> Choice:
    if profile is None:
        reason = f"no firmware profile: {profile_reason}" if profile_reason else "no firmware profile matches it"
        return Choice(None, reason, {})
    return select(profile, facts, candidates, objective)


def _for_kind(profile: str | None, profile_reason: str, choice: Choice, objective: Objective) -> Chosen:
    build = choice.chosen
    chosen = None if build is None else {"target": build.target, "build": build.id, "reason": choice.reason}
    return Chosen(
        build_id=None if build is None else build.id,
        target=None if build is None else build.target,
        reason=choice.reason,
        why={
            "profile": profile,
            "profile_reason": profile_reason,
            "objective": objective,
            "chosen": chosen,
            "reason": choice.reason,
            "lost": [{"target": target, "reason": reason} for target, reason in sorted(choice.lost.items())],
        },
    )


def _candidate(build: Build) -> Candidate:
    return Candidate.of(
        build.id,
        build.target,
        build.state,
        report=None if build.report is None else msgspec.convert(build.report, BuildReport),
        manifest=None if build.manifest is None else decode(Manifest, build.manifest),
        waiting_for=build.waiting_for,
    )
