"""Whether a version's graph is fit for TensorRT, long before a builder with the right GPU comes.

TensorRT engines are built on their own kind of GPU, so their builds may wait. TensorRT-RTX builds engines without any, which checks the
graph. That check is a build of the version like any other, with the target `CHECK_TARGET`; it ends "checked" and is never released.

Invariant: what a check has found is kept once, in the check's own build; what waits for a builder reads it there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from covey_server.db.tables import Build

CHECK_TARGET = "tensorrt-rtx-fp32"
_CHECKED_PREFIX = "tensorrt-"
_PACKAGE = "tensorrt-rtx"
_REASON_CHARACTERS = 300


def with_check(targets: Sequence[str], can_build: Callable[[str], bool]) -> tuple[str, ...]:
    """The targets, and the check if one of them is a TensorRT engine and some worker offers the check.

    >>> with_check(["tensorrt-fp16-sm87"], lambda target: target == "tensorrt-rtx-fp32")
    ('tensorrt-fp16-sm87', 'tensorrt-rtx-fp32')
    """
    wanted = any(target.startswith(_CHECKED_PREFIX) for target in targets)
    if not wanted or CHECK_TARGET in targets or not can_build(CHECK_TARGET):
        return tuple(targets)
    return (*targets, CHECK_TARGET)


def among(builds: Iterable[Build]) -> Build | None:
    """The check among the builds of one version."""
    return next((build for build in builds if build.target == CHECK_TARGET), None)


def of_versions(session: Session, version_ids: Iterable[int]) -> Mapping[int, Build]:
    """The checks of these versions, by version id; of those that have one."""
    ids = set(version_ids)
    found = session.scalars(select(Build).where(Build.version_id.in_(ids), Build.target == CHECK_TARGET))
    return {build.version_id: build for build in found}


def waiting_for(build: Build, check: Build | None) -> str:
    """A sentence while nobody can build this, else empty. Of a TensorRT engine it also tells what the version's check has found."""
    if build.state != "queued" or not build.waiting_for:
        return ""
    if check is None or build.target == CHECK_TARGET or not build.target.startswith(_CHECKED_PREFIX):
        return build.waiting_for
    return f"{build.waiting_for}; {_finding(check)}"


def _finding(check: Build) -> str:
    report = check.report or {}
    version = str(dict(report.get("toolchain") or {}).get(_PACKAGE, ""))
    through = f"TensorRT-RTX {version}".strip()
    reason = str(report.get("reason", ""))[:_REASON_CHARACTERS]
    if check.state in ("checked", "built"):
        return f"its graph is fit for TensorRT, checked through {through}"
    if check.state in ("queued", "building"):
        return "its graph is still to be checked through TensorRT-RTX"
    if check.state == "unsupported":
        return f"the check through {through} says: {reason}"
    return f"the check of its graph through {through} came to no end: {reason}"
