"""Builds that were not released when they were delivered are later: from before there was a repository, or for want of a key."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from covey_contract.manifest import FileEntry, Manifest
from covey_contract.wire import encode
from covey_hil.testing.manifests import made_manifest
from covey_hil.testing.rows import add_build, add_version
from covey_server.db.engine import Database
from covey_server.releases.catch_up import CatchUp, release_of
from covey_server.releases.upkeep import Upkeep
from tests.unit.server_releases.conftest import Site


def manifest_of(version: str) -> Manifest:
    table = FileEntry(path="blocks.bin", size=32, sha256="1" * 64)
    return made_manifest(model="digits", version=version, table=table, architecture="x86_64")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'covey.db'}")
    made.migrate()
    yield made
    made.close()


def test_what_was_built_is_released_once_and_not_again_after_it_was_withdrawn(
    site: Site, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    store(database, "1.0")
    upkeep = Upkeep(site.releases, CatchUp(database, site.releases))
    upkeep.tick()
    build = release_of(manifest_of("1.0"), encode(manifest_of("1.0")))
    target = site.check(build)
    assert target.custom["covey"] == {
        "runtime": "onnxruntime",
        "precision": "fp32",
        "architecture": "x86_64",
        "release": 1,
    }
    assert CatchUp(database, site.releases).run() == 0
    site.releases.withdraw("digits", "1.0")
    assert CatchUp(database, site.releases).run() == 0
    publisher = site.releases.keyring.named("publisher")
    assert publisher is not None
    site.releases.keyring.drop([publisher.keyid])
    store(database, "1.1")
    waiting = CatchUp(database, site.releases)
    with caplog.at_level(logging.ERROR):
        assert [waiting.run(), waiting.run()] == [0, 0]
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["1 builds of digits are not released"]
    site.releases.keyring.add(publisher, "publisher", "file:publisher.pem", publishes=True)
    assert waiting.run() == 1


def store(database: Database, version: str) -> None:
    """A version with one build that was built."""
    payload = encode(manifest_of(version))
    with database.session() as session:
        row = add_version(session, version)
        add_build(session, row, None, manifest=payload)
