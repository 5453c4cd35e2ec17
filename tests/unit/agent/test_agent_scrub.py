"""Files that change on disk while nobody looks: found by reading, fetched again, and nothing stops serving for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from covey_agent.settings import Settings
from covey_contract.lifecycle import State
from covey_contract.reasons import Reason
from covey_hil.testing.agent_world import World
from covey_hil.testing.random_builds import RandomBuild

Make = Callable[..., RandomBuild]
DAY_S = Settings(state=Path()).scrub_every_s


def spoil(world: World, build: RandomBuild, file: int = 0) -> Path:
    blob = world.folder / "blobs" / build.manifest.files[file].sha256
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    return blob


@pytest.fixture
def builds(world: World, random_build: Make) -> tuple[RandomBuild, RandomBuild]:
    one, two = random_build((9_000,), 1, "1"), random_build((9_000, 5_000), 2, "2")
    for build in (one, two):
        world.order(build)
        world.run(lambda build=build: world.is_settled(build))  # type: ignore[misc]
    world.reports.clear()
    world.gateway.loads.clear()
    return one, two


def test_one_bit_of_the_active_build_is_found_and_fetched_again(
    world: World, builds: tuple[RandomBuild, RandomBuild]
) -> None:
    _, two = builds
    blob = spoil(world, two, file=1)
    for _ in range(3):
        world.round()
    assert not world.reports
    world.now += DAY_S
    world.run(lambda: bool(world.reports) and world.is_settled(two))
    assert [report.state for report in world.reports] == [State.FETCHING, State.VERIFYING, State.ACTIVE]
    assert world.reports[0].reason is Reason.DIGEST_MISMATCH
    assert blob.read_bytes() == two.contents[2]
    # What serves has its bytes in memory and is not started anew; a gateway that is new gets what was fetched.
    assert not world.gateway.loads
    world.gateway.lose_everything()
    world.run(lambda: world.is_settled(two))
    assert world.gateway.loads == [two.digest]


def test_a_blob_that_is_gone_is_fetched_again(world: World, builds: tuple[RandomBuild, RandomBuild]) -> None:
    _, two = builds
    blob = world.folder / "blobs" / two.manifest.files[0].sha256
    blob.unlink()
    world.now += DAY_S
    world.run(lambda: bool(world.reports) and world.is_settled(two))
    assert blob.read_bytes() == two.contents[1]


def test_a_damaged_build_to_go_back_to_is_given_up(world: World, builds: tuple[RandomBuild, RandomBuild]) -> None:
    one, two = builds
    spoil(world, one)
    world.now += DAY_S
    world.run(lambda: world.record.previous is None)
    assert world.record.active == two.digest
    # It is not gone back to when the active build does not start, either.
    assert world.is_settled(two)
    world.order(one)
    world.run(lambda: world.is_settled(one))


def test_a_restart_in_the_middle_of_mending(world: World, builds: tuple[RandomBuild, RandomBuild]) -> None:
    _, two = builds
    blob = spoil(world, two)
    world.now += DAY_S
    for _ in range(100):
        world.round()
        if world.is_in(State.FETCHING) or world.is_in(State.VERIFYING):
            break
    world.boot()
    world.run(lambda: world.is_settled(two))
    assert blob.read_bytes() == two.contents[1]
