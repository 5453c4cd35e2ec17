"""Where a build comes from: an in-toto Statement v1 with a SLSA provenance v1 predicate, as `provenance.json` beside the build.

Formats: https://in-toto.io/Statement/v1 and https://slsa.dev/spec/v1.0/provenance. The subjects are the files of the build; the
manifest pins the statement by `provenance_sha256`, and the release key's signature on the manifest covers both. A statement
holds no times, so that the same build made again has the same one.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from covey_contract.building import PROVENANCE_FILE
from covey_contract.manifest import FileEntry
from covey_converters import __version__
from covey_converters.measure import machine
from covey_converters.spec import BuildSpec

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:covey:build:v1"
BUILDER = "urn:covey:builder:covey-convert"

Json = dict[str, object]


def write_provenance(
    folder: Path, spec: BuildSpec, recipe: str, toolchain: Mapping[str, str], files: Iterable[FileEntry]
) -> str:
    """Write the statement of a build; its SHA-256."""
    parts = {
        "source": spec.source,
        "calibration": spec.calibration,
        "evaluation": spec.evaluation,
        "labels": spec.labels,
    }
    materials = {what: sha256_of(Path(path)) for what, path in parts.items() if path is not None}
    found = statement(spec, recipe, toolchain, files, materials, {"machine": machine(), "system": platform.platform()})
    data = msgspec.json.format(msgspec.json.encode(found, order="sorted"), indent=1) + b"\n"
    (folder / PROVENANCE_FILE).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def statement(
    spec: BuildSpec,
    recipe: str,
    toolchain: Mapping[str, str],
    files: Iterable[FileEntry],
    materials: Mapping[str, str],
    builder: Mapping[str, str],
) -> Json:
    """`materials`: SHA-256 by what it is of; `toolchain`: version by package; `builder`: what is known of the machine."""
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": file.path, "digest": {"sha256": file.sha256}} for file in files],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "model": spec.model,
                    "version": spec.version,
                    "target": spec.target,
                    "budget": spec.budget,
                    "metric": spec.metric,
                    "max_batch": spec.max_batch,
                    "shapes": {name: list(shape) for name, shape in spec.shapes.items()},
                    "metadata": spec.metadata,
                },
                "internalParameters": {"recipe": recipe},
                "resolvedDependencies": [
                    *({"name": name, "digest": {"sha256": digest}} for name, digest in materials.items()),
                    *(
                        {"uri": f"pkg:pypi/{package}@{version}", "name": package, "annotations": {"version": version}}
                        for package, version in toolchain.items()
                    ),
                ],
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"covey-convert": __version__, **builder}},
                "metadata": {},
            },
        },
    }


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
