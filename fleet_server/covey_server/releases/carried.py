"""What of the repository a device needs that cannot ask for it: the files by which a client that knows any root finds some families."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from covey_server.releases.edition import Edition
from covey_server.releases.errors import RepositoryDamaged
from covey_server.releases.policy import ROOT, SNAPSHOT, TARGETS, publisher_role
from covey_server.releases.releases import Releases
from covey_server.releases.shelf import metadata_name

_TRIES = 5


def files_for(releases: Releases, models: Iterable[str]) -> dict[str, bytes]:
    """Name -> bytes: every root, and of one and the same edition the rest. Raises `RepositoryDamaged`, `NotFound`."""
    wanted = sorted(set(models))
    for _ in range(_TRIES):
        stamp = releases.shelf.metadata("timestamp.json")
        edition = releases.edition()
        files = {name: releases.shelf.metadata(name) for name in _names(edition, wanted)}
        if stamp == releases.shelf.metadata("timestamp.json"):
            return {**files, "timestamp.json": stamp}
    raise RepositoryDamaged("the repository changes faster than it can be read")


def _names(edition: Edition, models: Iterable[str]) -> Iterator[str]:
    """All but the timestamp's."""
    for version in range(1, edition.root.signed.version + 1):
        yield metadata_name(ROOT, version)
    yield metadata_name(SNAPSHOT, edition.snapshot.signed.version)
    roles = [TARGETS]
    for model in models:
        if edition.is_delegated(publisher_role(model)):
            roles += dict.fromkeys([publisher_role(model), *edition.family(model)])
    for role in roles:
        yield metadata_name(role, edition.snapshot.signed.meta[f"{role}.json"].version)
