"""Builds become releases: at once when a worker delivers one, and later for those that could not be released then.

A build that is not released is refused by every device; it waits for its publisher's key, or was built before there was a repository.
"""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy import select

from covey_contract.manifest import Manifest
from covey_contract.wire import decode
from covey_server.db.engine import Database
from covey_server.db.tables import Build, Version
from covey_server.releases.errors import KeysMissing
from covey_server.releases.release import Release
from covey_server.releases.releases import Releases

log = logging.getLogger(__name__)

_AT_ONCE = 500


def release_of(manifest: Manifest, payload: bytes) -> Release:
    """A build's release: what a device compares with the manifest, beside its hash and length."""
    fields: dict[str, Any] = {
        "runtime": str(manifest.runtime),
        "precision": manifest.precision,
        "architecture": manifest.architecture,
        "compute_capability": manifest.compute_capability,
    }
    told = {name: value for name, value in fields.items() if value is not None}
    return Release(manifest.model, manifest.version, manifest.target, payload, told)


class CatchUp:
    """`run` looks for builds that are not released, cheaply where there are none."""

    def __init__(self, database: Database, releases: Releases) -> None:
        self._database = database
        self._releases = releases
        self._known: set[int] = set()
        self._last_line = ""

    def run(self) -> int:
        """How many were released now."""
        with self._database.reading() as session:
            built = set(session.scalars(select(Build.id).where(Build.state == "built")))
            missing = sorted(built - self._known)[:_AT_ONCE]
            rows = session.execute(
                select(Build.id, Build.manifest, Version.model)
                .join(Version, Version.id == Build.version_id)
                .where(Build.id.in_(missing), Build.manifest.is_not(None))
            ).all()
        number = 0
        for model in dict.fromkeys(row.model for row in rows):
            of_model = [row for row in rows if row.model == model]
            released = {path for path, _ in self._releases.edition().targets(model)}
            builds = [release_of(decode(Manifest, row.manifest), row.manifest) for row in of_model]
            late = [build for build in builds if build.path not in released | self._releases.shelf.withdrawn()]
            try:
                self._releases.release(late)
            except KeysMissing as error:
                self._say(f"{len(late)} builds of {model} are not released: {error.detail}")
                continue
            self._known.update(row.id for row in of_model)
            number += len(late)
        return number

    def _say(self, line: str) -> None:
        """Once, not every minute."""
        if line != self._last_line:
            log.error("%s", line)
            self._last_line = line
