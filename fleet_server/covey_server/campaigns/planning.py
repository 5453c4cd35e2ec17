"""From a campaign file to a plan: which device gets which build in which stage, why, and who is left out. Moves nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from covey_server.campaigns.choice import Chosen, choose
from covey_server.core.document import DocumentError, Path
from covey_server.core.plan import Candidate, Plan, make_plan
from covey_server.core.spec import CampaignSpec
from covey_server.db.tables import Build, Device, Version
from covey_server.errors import NotFound
from covey_server.fleet.groups import members_query
from covey_server.fleet.sql import chunks

# Names the line of the campaign file that a complaint is about.
Locate = Callable[[Path, str], DocumentError]


@dataclass(frozen=True)
class Prepared:
    """A plan, with the version it is about, what was chosen for each device of the target, and each device's profile."""

    version: Version
    plan: Plan
    chosen: dict[str, Chosen]
    profiles: dict[str, str | None]


def prepare(session: Session, spec: CampaignSpec, seed: int, locate: Locate) -> Prepared:
    """Raises `DocumentError` where the file names a version, group or device that is not there."""
    version = session.scalar(select(Version).where(Version.model == spec.model, Version.name == spec.version))
    if version is None:
        raise locate(("version",), f"there is no version {spec.version} of model {spec.model}")
    groups = {
        stage.group: _members(session, stage.group, locate, ("stages", index, "group"))
        for index, stage in enumerate(spec.stages)
        if stage.group is not None
    }
    target = _target(session, spec, locate)
    profiles = _profiles(session, sorted(target))
    chosen = choose(session, version.id, sorted(profiles), spec.objective)
    candidates = [
        Candidate(device, profile, None if chosen[device].build_id is not None else chosen[device].reason)
        for device, profile in profiles.items()
    ]
    plan = make_plan(spec.stages, candidates, groups, seed)
    warnings = (*plan.warnings, *_unfinished(session, version.id))
    plan = Plan(plan.stages, plan.left_out, warnings, plan.seed)
    return Prepared(version, plan, chosen, profiles)


def _target(session: Session, spec: CampaignSpec, locate: Locate) -> set[str]:
    target: set[str] = set(spec.target.devices)
    for index, group in enumerate(spec.target.groups):
        target |= _members(session, group, locate, ("target", "groups", index))
    for index, group in enumerate(spec.exclude.groups):
        target -= _members(session, group, locate, ("exclude", "groups", index))
    target -= set(spec.exclude.devices)
    known = set(_profiles(session, sorted(spec.target.devices)))
    for index, device in enumerate(spec.target.devices):
        if device not in known:
            raise locate(("target", "devices", index), f"no device is called {device}")
    return target


def _members(session: Session, group: str, locate: Locate, path: Path) -> set[str]:
    try:
        return set(session.scalars(members_query(session, group)))
    except NotFound as error:
        raise locate(path, f"there is no group {group}") from error


def _profiles(session: Session, devices: Sequence[str]) -> dict[str, str | None]:
    """The profile of each of `devices` that is enrolled and not revoked."""
    found: dict[str, str | None] = {}
    for part in chunks(devices):
        rows = session.execute(
            select(Device.id, Device.profile).where(Device.id.in_(part), Device.revoked_ms.is_(None))
        )
        found.update({row.id: row.profile for row in rows})
    return found


def _unfinished(session: Session, version_id: int) -> list[str]:
    """A build that is still in work may be the better choice; whoever plans now should know."""
    targets = session.scalars(
        select(Build.target).where(Build.version_id == version_id, Build.state == "building").order_by(Build.target)
    ).all()
    counted = Counter(targets)
    return [f"{', '.join(sorted(counted))} still being built; this plan does without"] if counted else []
