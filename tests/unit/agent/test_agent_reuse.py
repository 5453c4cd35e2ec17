"""What the device has in other builds is not fetched again."""

from __future__ import annotations

from pathlib import Path

import pytest

from covey_agent.fetch import Fetcher, adopt_all
from covey_agent.store import Store
from covey_hil.testing.random_builds import BLOCK, RandomBuild


def pump(fetcher: Fetcher, build: RandomBuild) -> None:
    fetcher.open()
    for second in range(1000):
        if fetcher.done:
            return
        for request in fetcher.tick(float(second), connected=True):
            for block in build.answers(request):
                fetcher.block(block, float(second))
    raise AssertionError("not done")


def successor(before: RandomBuild, changed: int) -> RandomBuild:
    """A build whose file begins as another's and ends otherwise."""
    old, new = before.contents[1], RandomBuild((len(before.contents[1]),), seed=1).contents[1]
    return RandomBuild.of([old[: len(old) - changed] + new[len(old) - changed :]], version="2")


@pytest.fixture
def before(tmp_path: Path, store: Store) -> RandomBuild:
    build = RandomBuild((300_000,))
    fetcher = build.fetcher(tmp_path, store)
    pump(fetcher, build)
    adopt_all(build.manifest, fetcher.folder, store)
    store.stage(build.manifest, build.manifest_bytes)
    return build


@pytest.mark.parametrize("changed", [1, 5_000, 100_000])
def test_only_changed_blocks_are_fetched(tmp_path: Path, store: Store, before: RandomBuild, changed: int) -> None:
    build = successor(before, changed)
    fetcher = build.fetcher(tmp_path, store)
    pump(fetcher, build)
    blocks = len(range((300_000 - changed) // BLOCK * BLOCK, 300_000, BLOCK))
    table = len(build.contents[0])
    assert fetcher.progress.reused == 300_000 - 300_000 % BLOCK - (blocks - 1) * BLOCK
    assert fetcher.progress.bytes == table + 300_000 - fetcher.progress.reused
    adopt_all(build.manifest, fetcher.folder, store)
    folder = store.stage(build.manifest, build.manifest_bytes)
    assert (folder / "f0.bin").read_bytes() == build.contents[1]


def test_a_damaged_file_lends_nothing_false(tmp_path: Path, store: Store, before: RandomBuild) -> None:
    blob = store.blob(before.manifest.files[0].sha256)
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[10] ^= 1
    blob.write_bytes(data)
    build = successor(before, 5_000)
    fetcher = build.fetcher(tmp_path, store)
    pump(fetcher, build)
    adopt_all(build.manifest, fetcher.folder, store)
    assert store.blob(build.manifest.files[0].sha256).read_bytes() == build.contents[1]


def test_nothing_in_common_costs_nothing_but_the_look(tmp_path: Path, store: Store, before: RandomBuild) -> None:
    del before
    build = RandomBuild((300_000,), seed=9)
    fetcher = build.fetcher(tmp_path, store)
    pump(fetcher, build)
    assert fetcher.progress.reused == 0
