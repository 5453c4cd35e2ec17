"""All metadata by which a device that trusts some root can judge one target, as one answer (covey_contract.metadata)."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from covey_contract.metadata import pack_metadata
from covey_server.releases.edition import Edition, bins_of
from covey_server.releases.policy import ROOT, SNAPSHOT, TARGETS, publisher_role
from covey_server.releases.releases import Releases
from covey_server.releases.shelf import metadata_name

MOST_ROOTS = 64  # at once; a device that is further behind asks again
_KEPT = 64


class Answers:
    """`of` gives the same answer to all who ask the same of one edition. For one thread."""

    def __init__(self, releases: Releases) -> None:
        self._releases = releases
        self._kept: OrderedDict[tuple[str, str, int], bytes] = OrderedDict()

    def of(self, path: str, root: int) -> bytes:
        """For the target at `path`, which need not exist, and a device that has that version of root. Raises `RepositoryDamaged`,
        `NotFound`."""
        stamp = hashlib.sha256(self._releases.shelf.metadata("timestamp.json")).hexdigest()
        key = (stamp, path, root)
        if key not in self._kept:
            self._kept[key] = pack_metadata(self._files(self._releases.edition(), path, root))
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _files(self, edition: Edition, path: str, root: int) -> dict[str, bytes]:
        newest = edition.root.signed.version
        versions = range(root + 1, min(newest, root + MOST_ROOTS) + 1)
        names = [metadata_name(ROOT, version) for version in versions]
        names += ["timestamp.json", metadata_name(SNAPSHOT, edition.snapshot.signed.version)]
        meta = edition.snapshot.signed.meta
        names += [metadata_name(role, meta[f"{role}.json"].version) for role in self._roles(edition, path)]
        return {name: self._releases.shelf.metadata(name) for name in names}

    @staticmethod
    def _roles(edition: Edition, path: str) -> list[str]:
        """Those that a client reads on its way to the target."""
        parts = path.split("/")
        publisher = publisher_role(parts[1]) if len(parts) > 1 else ""
        if not publisher or not edition.is_delegated(publisher):
            return [TARGETS]
        bins = bins_of(edition.role(publisher).signed)
        digest = hashlib.sha256(path.encode()).hexdigest()
        return [TARGETS, publisher, *(one for one in bins if digest.startswith(one.rsplit("~", 1)[-1]))]
