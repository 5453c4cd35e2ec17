"""What a worker delivers is checked before it is signed: the server's signature says that all of this holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from covey_contract.building import PROVENANCE_MAX_BYTES, BuildReport, Outcome
from covey_contract.errors import ContractError
from covey_contract.manifest import FileEntry, Manifest, check_target
from covey_contract.wire import decode
from covey_server.errors import Invalid, NotFound
from covey_server.registry.blobs import BlobStore


class _Subject(msgspec.Struct):
    name: str
    digest: dict[str, str]


class _Material(msgspec.Struct):
    name: str = ""
    digest: dict[str, str] = {}


class _Definition(msgspec.Struct, rename="camel"):
    external_parameters: dict[str, Any]
    resolved_dependencies: list[_Material] = []


class _Predicate(msgspec.Struct, rename="camel"):
    build_definition: _Definition


class _Statement(msgspec.Struct, rename="camel"):
    """As much of an in-toto Statement v1 with SLSA provenance v1 as is checked (https://in-toto.io/Statement/v1,
    https://slsa.dev/provenance/v1)."""

    kind: Literal["https://in-toto.io/Statement/v1"] = msgspec.field(name="_type")
    predicate_type: Literal["https://slsa.dev/provenance/v1"]
    subject: list[_Subject]
    predicate: _Predicate


def check_report(data: bytes, target: str, *, has_manifest: bool) -> BuildReport:
    """The report, if it is one of this target and says "built" exactly if there is a manifest."""
    try:
        report = decode(BuildReport, data)
    except ContractError as error:
        raise Invalid(str(error)[:500], field="report") from error
    if report.target != target:
        raise Invalid(f"the report is of {report.target[:80]!r}, the job of {target}", field="report")
    if (report.outcome is Outcome.BUILT) != has_manifest:
        raise Invalid("a build that was built has a manifest, any other has none", field="manifest")
    return report


def check_manifest(data: bytes, model: str, version: str, target: str) -> Manifest:
    """The manifest, if it is one of this very job."""
    try:
        manifest = decode(Manifest, data)
    except ContractError as error:
        raise Invalid(str(error)[:500], field="manifest") from error
    runtime, precision = check_target(target)
    for what, says, wanted in (
        ("model", manifest.model, model),
        ("version", manifest.version, version),
        ("target", manifest.target, target),
        ("runtime", manifest.runtime.value, runtime.value),
        ("precision", manifest.precision, precision),
    ):
        if says != wanted:
            raise Invalid(f"the manifest's {what} is {says[:80]!r}, the job's {wanted!r}", field="manifest")
    return manifest


def check_files(blobs: BlobStore, manifest: Manifest, materials: Mapping[str, str | None]) -> None:
    """All files are in the store, whole, with the statement of provenance, and the block table is theirs. Reads every byte once.

    `materials`: SHA-256 by name of what was uploaded for this job, None for what was not."""
    for entry in manifest.wire_files():
        _check_size(blobs, entry)
    if manifest.provenance_sha256 is not None:
        _check_provenance(blobs, manifest, manifest.provenance_sha256, materials)
    with blobs.open(manifest.table.sha256) as table:
        for entry in manifest.files:
            with blobs.open(entry.sha256) as file:
                while block := file.read(manifest.block_size):
                    if hashlib.sha256(block).digest() != table.read(32):
                        raise Invalid(f"the block table does not fit {entry.path}", field="manifest")


def _check_provenance(blobs: BlobStore, manifest: Manifest, sha256: str, materials: Mapping[str, str | None]) -> None:
    """It is a statement about these very files, this model, version and target, made from the very files that were uploaded: what is
    signed must not point to somebody else's origin."""
    try:
        size = blobs.size(sha256)
    except NotFound as error:
        raise Invalid(f"the statement of provenance was not delivered ({sha256})", field="manifest") from error
    if size > PROVENANCE_MAX_BYTES:
        raise Invalid(f"the statement of provenance has {size} bytes; at most {PROVENANCE_MAX_BYTES}", field="manifest")
    with blobs.open(sha256) as file:
        data = file.read()
    try:
        statement = msgspec.json.decode(data, type=_Statement)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the statement of provenance is none: {str(error)[:300]}", field="manifest") from error
    subjects = {subject.name: subject.digest.get("sha256") for subject in statement.subject}
    for entry in manifest.files:
        if subjects.pop(entry.path, None) != entry.sha256:
            raise Invalid(f"the statement of provenance is not about this {entry.path}", field="manifest")
    if subjects:
        raise Invalid(f"the statement of provenance is about {next(iter(subjects))[:80]!r} too", field="manifest")
    told = statement.predicate.build_definition.external_parameters
    for what, wanted in (("model", manifest.model), ("version", manifest.version), ("target", manifest.target)):
        if told.get(what) != wanted:
            raise Invalid(f"the statement of provenance tells of another {what}", field="manifest")
    used = statement.predicate.build_definition.resolved_dependencies
    for what, uploaded in materials.items():
        told_of = [material.digest.get("sha256") for material in used if material.name == what]
        if told_of != ([] if uploaded is None else [uploaded]):
            raise Invalid(f"the statement of provenance tells of another {what} than was uploaded", field="manifest")


def _check_size(blobs: BlobStore, entry: FileEntry) -> None:
    try:
        size = blobs.size(entry.sha256)
    except NotFound as error:
        raise Invalid(f"{entry.path} was not delivered ({entry.sha256})", field="manifest") from error
    if size != entry.size:
        raise Invalid(f"{entry.path} has {size} bytes, not {entry.size} as the manifest says", field="manifest")
