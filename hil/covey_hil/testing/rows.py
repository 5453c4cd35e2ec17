"""Rows of the server's database, as if somebody had pushed a model: for tests and benchmarks that are about something else."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy.orm import Session

from covey_contract.building import BuildReport, Outcome
from covey_server.db.tables import Blob, Build, Campaign, Model, Version

SOURCE = "0" * 64  # no such file lies in the blob store


def add_version(session: Session, name: str, *, model: str = "digits", now_ms: int = 1, **fields: Any) -> Version:
    """A version without builds, and its model if that is not there yet. `fields` are those of the row."""
    if session.get(Model, model) is None:
        session.add(Model(name=model, description="", created_ms=now_ms))
    if session.get(Blob, SOURCE) is None:
        session.add(Blob(sha256=SOURCE, size=1, created_ms=now_ms))
    session.flush()
    given = {
        "source_blob": SOURCE,
        "source_filename": f"{model}.onnx",
        "budget": 0.01,
        "info": {},
        "created_ms": now_ms,
        "created_by": "anna",
        **fields,
    }
    version = Version(model=model, name=name, **given)
    session.add(version)
    session.flush()
    return version


def add_build(
    session: Session, version: Version, digest: str | None, *, target: str = "onnxruntime-fp32", **fields: Any
) -> Build:
    """A build of the version; `fields` are those of the row, by default of one that was built."""
    given = {"state": "built", "size": 1000, "created_ms": version.created_ms, **fields}
    build = Build(version_id=version.id, target=target, digest=digest, **given)
    session.add(build)
    session.flush()
    return build


def add_campaign(session: Session, version_id: int, name: str = "digits-1.0", **fields: Any) -> Campaign:
    """A campaign for the version, under way; `fields` are those of the row."""
    given = {
        "model": "digits",
        "spec": {},
        "source": "",
        "state": "running",
        "created_ms": 1,
        "created_by": "anna",
        **fields,
    }
    campaign = Campaign(name=name, version_id=version_id, **given)
    session.add(campaign)
    session.flush()
    return campaign


def report_of(target: str, size: int = 1000, **fields: Any) -> dict[str, Any]:
    """What a worker says of a build that it made, as the database keeps it."""
    return dict(
        msgspec.to_builtins(BuildReport(target=target, outcome=Outcome.BUILT, size=size, source_size=size, **fields))
    )
