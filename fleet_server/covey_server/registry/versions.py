"""Models and their versions: what was uploaded, under which name, never changed afterwards.

Invariant: a version's content is fixed by its first push. The same push again is welcome and changes nothing but the list of
builds; another content under the same name is a `Conflict`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from covey_contract import metric
from covey_contract.building import MAX_BATCH_KEY, METRIC_KEY
from covey_contract.errors import DecodeError
from covey_contract.manifest import MAX_BATCH, MODEL_NAME, VERSION_NAME, check_target
from covey_contract.sources import PICKLE_HELP, SOURCE_SUFFIXES, SourceFormat, detect
from covey_server.db.tables import Blob, Build, Model, Version
from covey_server.errors import Conflict, Invalid, NotFound

# Names of files that hold Python objects or bare weights, whatever is in them.
_PICKLES = (".pkl", ".pickle", ".bin", ".ckpt", ".joblib")
_ARCHIVES = (".pt2", ".pt", ".pth", ".ts", ".keras", ".zip")
_MAX_TARGETS = 32
_MAX_METADATA = 64
_MAX_KEY, _MAX_VALUE = 128, 4096
_MAX_DESCRIPTION = 4000
_MAX_BUDGET = 1.0


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A version as it came in, its files already in the blob store."""

    model: str
    version: str
    source: str
    source_filename: str
    calibration: str | None = None
    evaluation: str | None = None
    labels: str | None = None
    budget: float = 0.01
    description: str = ""
    metadata: Mapping[str, str]
    targets: tuple[str, ...] = ()


# --- checks of what people write ---------------------------------------------------------------------------------


def check_model_name(name: str) -> str:
    if not MODEL_NAME.fullmatch(name):
        raise Invalid(
            "a model's name has 1 to 64 of a-z 0-9 . _ - and begins with a letter or digit",
            field="model",
            value=name[:80],
        )
    return name


def check_version_name(name: str) -> str:
    if not VERSION_NAME.fullmatch(name):
        raise Invalid(
            "a version's name has 1 to 64 of A-Z a-z 0-9 . _ + - and begins with a letter or digit",
            field="version",
            value=name[:80],
        )
    return name


def check_targets(targets: Sequence[str]) -> tuple[str, ...]:
    """The targets without duplicates, in order."""
    if len(targets) > _MAX_TARGETS:
        raise Invalid(f"{len(targets)} targets; at most {_MAX_TARGETS}", field="targets")
    for target in targets:
        try:
            check_target(target)
        except DecodeError as error:
            raise Invalid(str(error)[:300], field="targets") from error
    return tuple(dict.fromkeys(targets))


def check_source_name(filename: str) -> str:
    """The plain name of the uploaded source; what it is, `check_source` tells by its content."""
    name = PurePosixPath(filename.replace("\\", "/")).name
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in _PICKLES:
        raise Invalid(
            f"{name[:80]!r} is a pickle or a bare checkpoint, which runs code when it is loaded; export the model to ONNX",
            field="source",
            code="pickle_refused",
        )
    if suffix not in SOURCE_SUFFIXES:
        raise Invalid(f"{name[:80]!r}: a source is one of {', '.join(SOURCE_SUFFIXES)}", field="source")
    if len(name) > 128 or not name.isprintable():
        raise Invalid("the source's file name is longer than 128 characters or not printable", field="source")
    return name


def check_source(filename: str, file: BinaryIO) -> None:
    """Refuse a pickle, whose loading runs whatever code it brings, and archives that are no model. Reads, and never unpacks.

    `file` is left at its beginning. Raises `Invalid`.
    """
    try:
        found = detect(file)
    except DecodeError as error:
        raise Invalid(f"{filename[:80]!r}: {error}", field="source") from error
    if found is SourceFormat.PICKLE:
        raise Invalid(f"{filename[:80]!r} is {PICKLE_HELP}", field="source", code="pickle_refused")
    if found is SourceFormat.ONNX and PurePosixPath(filename).suffix.lower() in _ARCHIVES:
        raise Invalid(
            f"{filename[:80]!r} is none of what its name says: not an archive that Covey reads", field="source"
        )


def check_evaluation(metadata: Mapping[str, str], file: BinaryIO | None) -> None:
    """Refuse at the push what no builder could judge: an unknown metric, one without the labels that it needs, a file that is no .npz.

    `file` is left at its beginning. Raises `Invalid`.
    """
    declared = metadata.get(METRIC_KEY, "")
    try:
        metric.check_evaluation(declared, file)
    except DecodeError as error:
        raise Invalid(str(error), field="metadata" if file is None else "evaluation") from error


def check_budget(text: str) -> float:
    """The highest absolute drop of the metric that a build may have, 0 to 1."""
    try:
        budget = float(text)
    except ValueError as error:
        raise Invalid(f"budget {text[:40]!r} is not a number", field="budget") from error
    if not math.isfinite(budget) or not 0 <= budget <= _MAX_BUDGET:
        raise Invalid(f"budget {text[:40]} is not between 0 and 1", field="budget")
    return budget


def check_metadata(text: str) -> dict[str, str]:
    """A JSON object of texts, numbers and truth values; values become text."""
    try:
        read = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise Invalid("metadata is not JSON", field="metadata") from error
    if not isinstance(read, dict) or not all(isinstance(one, str | int | float | bool) for one in read.values()):
        raise Invalid("metadata is not a JSON object of plain values", field="metadata")
    values = {key: one if isinstance(one, str) else json.dumps(one) for key, one in read.items()}
    if len(values) > _MAX_METADATA:
        raise Invalid(f"metadata has {len(values)} entries; at most {_MAX_METADATA}", field="metadata")
    for key, value in values.items():
        if len(key) > _MAX_KEY or len(value) > _MAX_VALUE:
            raise Invalid(
                f"metadata {key[:40]!r}: keys have at most {_MAX_KEY}, values at most {_MAX_VALUE} characters",
                field="metadata",
            )
    batch = values.get(MAX_BATCH_KEY, "1")
    if not re.fullmatch(r"[0-9]{1,4}", batch) or not 1 <= int(batch) <= MAX_BATCH:
        raise Invalid(
            f"metadata {MAX_BATCH_KEY} {batch[:40]!r} is not a whole number from 1 to {MAX_BATCH}", field="metadata"
        )
    return values


def check_description(text: str) -> str:
    if len(text) > _MAX_DESCRIPTION:
        raise Invalid(f"the description has more than {_MAX_DESCRIPTION} characters", field="description")
    return text


# --- changes -------------------------------------------------------------------------------------------------------


def note_blob(session: Session, sha256: str, size: int, now_ms: int) -> None:
    """Remember a blob that is in the store; again is harmless."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    row = {"sha256": sha256, "size": size, "created_ms": now_ms}
    session.execute(insert(Blob).values(row).on_conflict_do_nothing())


def push_version(session: Session, upload: Upload, who: str, now_ms: int) -> tuple[Version, bool]:
    """The version and whether it is new. Raises `Conflict` if it is there with another content, naming what differs."""
    model = session.get(Model, upload.model, with_for_update=True)
    if model is None:
        model = Model(name=upload.model, description=upload.description, created_ms=now_ms)
        session.add(model)
        session.flush()
    elif upload.description:
        model.description = upload.description
    there = session.scalar(select(Version).where(Version.model == upload.model, Version.name == upload.version))
    if there is not None:
        if differs := _differences(there, upload):
            raise Conflict(
                f"version {upload.version} of {upload.model} is already there with another content "
                f"({', '.join(differs)}); push it under a new version name",
                code="version_exists",
                differs=differs,
            )
        return there, False
    version = Version(
        model=upload.model,
        name=upload.version,
        source_blob=upload.source,
        source_filename=upload.source_filename,
        calibration_blob=upload.calibration,
        evaluation_blob=upload.evaluation,
        labels_blob=upload.labels,
        budget=upload.budget,
        info=dict(upload.metadata),
        created_ms=now_ms,
        created_by=who,
    )
    session.add(version)
    session.flush()
    return version, True


def _differences(there: Version, upload: Upload) -> list[str]:
    pairs = {
        "source": (there.source_blob, upload.source),
        "calibration": (there.calibration_blob, upload.calibration),
        "evaluation": (there.evaluation_blob, upload.evaluation),
        "labels": (there.labels_blob, upload.labels),
        "budget": (there.budget, upload.budget),
        "metadata": (there.info, dict(upload.metadata)),
    }
    return [name for name, (old, new) in pairs.items() if old != new]


# --- looking ---------------------------------------------------------------------------------------------------------


def get_model(session: Session, name: str) -> Model:
    found = session.get(Model, name)
    if found is None:
        raise NotFound(f"there is no model {name[:80]!r}")
    return found


def get_version(session: Session, model: str, name: str) -> Version:
    """Raises `NotFound`, naming the model or the version, whichever is not there."""
    get_model(session, model)
    found = session.scalar(select(Version).where(Version.model == model, Version.name == name))
    if found is None:
        raise NotFound(f"there is no version {name[:80]!r} of {model}")
    return found


@dataclass(frozen=True)
class ModelSummary:
    model: Model
    versions: int
    newest: str | None


def list_models(session: Session, after: str, limit: int) -> list[ModelSummary]:
    """By name, those after `after`."""
    models = session.scalars(select(Model).where(Model.name > after).order_by(Model.name).limit(limit)).all()
    names = [model.name for model in models]
    last = select(func.max(Version.id)).where(Version.model.in_(names)).group_by(Version.model)
    newest = dict(session.execute(select(Version.model, Version.name).where(Version.id.in_(last))).all())
    counts = dict(
        session.execute(
            select(Version.model, func.count()).where(Version.model.in_(names)).group_by(Version.model)
        ).all()
    )
    return [ModelSummary(model, counts.get(model.name, 0), newest.get(model.name)) for model in models]


def list_versions(session: Session, model: str) -> list[Version]:
    """Of one model, newest first."""
    found = select(Version).where(Version.model == model).order_by(Version.id.desc()).limit(1000)
    return list(session.scalars(found))


def builds_by_version(session: Session, versions: Sequence[Version]) -> dict[int, list[Build]]:
    """The builds of these versions, by version id, each list by target."""
    ids = [version.id for version in versions]
    grouped: dict[int, list[Build]] = {one: [] for one in ids}
    for build in session.scalars(select(Build).where(Build.version_id.in_(ids)).order_by(Build.target)):
        grouped[build.version_id].append(build)
    return grouped


def sizes(session: Session, digests: Sequence[str]) -> dict[str, int]:
    """Bytes of the blobs, by SHA-256."""
    return dict(session.execute(select(Blob.sha256, Blob.size).where(Blob.sha256.in_(digests))).all())
