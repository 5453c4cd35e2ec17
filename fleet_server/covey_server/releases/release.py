"""A released build as a TUF target: the manifest's hash and length, and the fields that a device compares with its order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tuf.api.metadata import TargetFile

from covey_server.releases.policy import target_path

CUSTOM = "covey"  # our part of a target's custom fields


@dataclass(frozen=True)
class Release:
    """One build to be released: the exact bytes of its manifest, and what a device compares with its order."""

    model: str
    version: str
    target: str
    manifest: bytes
    fields: Mapping[str, Any]

    @property
    def path(self) -> str:
        return target_path(self.model, self.version, self.target)


def target_of(build: Release, counter: int) -> TargetFile:
    target = TargetFile.from_data(build.path, build.manifest, ["sha256"])
    target.unrecognized_fields["custom"] = {CUSTOM: {**build.fields, "release": counter}}
    return target


def with_counter(target: TargetFile, counter: int) -> TargetFile:
    custom = target.unrecognized_fields["custom"]
    fields = {"custom": {**custom, CUSTOM: {**custom[CUSTOM], "release": counter}}}
    return TargetFile(target.length, dict(target.hashes), target.path, {**target.unrecognized_fields, **fields})


def counters_of(targets: Iterable[tuple[str, TargetFile]]) -> dict[str, int]:
    """Release counters by version."""
    found: dict[str, int] = {}
    for path, target in targets:
        version = path.split("/")[2]
        found[version] = max(found.get(version, 0), int(target.unrecognized_fields["custom"][CUSTOM]["release"]))
    return found
